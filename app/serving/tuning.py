"""What a short measured run at load tells about an engine: how long it takes, and what pays for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from app.backends.base import Context
from app.domain.tensors import Tensors

BUDGET_S = 0.4  # for one engine, beside its warm-up runs
ON_LOOP_S = 0.0003  # a run up to this long costs less than the way to a thread and back
ON_LOOP_JOINT_S = 0.001  # of a joint run that stays on the event loop
GAIN = 0.85  # something pays when it takes at most this share of the time,
NO_LOSS = 1.05  # and costs nothing up to this one, as roughly as it is measured
CROWD_ROWS = 4  # of a joint run that costs nothing, where many wait for an only context
WIDE_BUDGET_S = 0.3  # for the second session of an engine whose lone requests might gain by it
_TIMES_MAX = 5  # the fastest of so many runs counts: what else the device does only adds
_JOINT_ROWS = (8, 4, 2)

MakeInputs = Callable[[int], Tensors]  # rows → inputs of a run


class Pace:
    """How long a run of so many rows takes: a straight line through two measurements, corrected by every later run."""

    def __init__(self, one_row_s: float, row_s: float) -> None:
        """
        Args:
            one_row_s: of a run of one row.
            row_s: of each further row.
        """
        self._one_row_s = one_row_s
        self._row_s = row_s
        self._drift = 1.0

    def seconds(self, rows: int) -> float:
        return (self._one_row_s + self._row_s * (rows - 1)) * self._drift

    def rows_within(self, limit_s: float) -> int:
        """Most rows of a run that takes at most so long; at least 1."""
        spare_s = limit_s / self._drift - self._one_row_s
        return 1 + max(0, int(spare_s / self._row_s))

    def learn(self, rows: int, took_s: float) -> None:
        """A run of so many rows took so long."""
        expected_s = self._one_row_s + self._row_s * (rows - 1)
        # Bounded, so that one run during which the processor was taken away does not count for many.
        self._drift += 0.05 * (min(took_s / expected_s, 10.0) - self._drift)


@dataclass(frozen=True)
class Tuning:
    """What was found out."""

    pace: Pace
    joint_share: float  # of the time of as many runs of one row, that a run of several takes; inf: not measured

    @property
    def joining_pays(self) -> bool:
        """Whether one run of several rows is faster than as many runs of one."""
        return self.joint_share <= GAIN

    def crowd_rows(self, contexts: int, rows_max: int) -> int:
        """Rows that are joined although that does not pay: an only context loses less time between its runs, and
        several would take each other's work."""
        is_free = contexts == 1 and self.joint_share <= NO_LOSS
        return min(CROWD_ROWS, rows_max) if is_free else 1


def measured(context: Context, make_inputs: MakeInputs, rows_max: int) -> Tuning:
    """Run the engine for at most about `BUDGET_S` seconds, after its warm-up. Raises what the runs raise.

    Args:
        rows_max: most rows of a joint run. Joining does not pay a slow engine, for which there is no time to measure
            it: several processors do more with a request each.
    """
    started_s = time.perf_counter()
    single = make_inputs(1)
    one_row_s = fastest(context, single, BUDGET_S / 8)
    left_s = BUDGET_S - (time.perf_counter() - started_s)
    rows = next((rows for rows in _JOINT_ROWS if rows <= rows_max and 2 * rows * one_row_s <= left_s), None)
    if rows is None:
        return Tuning(Pace(one_row_s, one_row_s), float("inf"))
    joint = make_inputs(rows)
    joint_s = float("inf")
    end_s = time.perf_counter() + left_s
    for _ in range(_TIMES_MAX):  # in turn, so that what else the device does slows both alike
        joint_s = min(joint_s, fastest(context, joint, 0))
        one_row_s = min(one_row_s, fastest(context, single, 0))
        if time.perf_counter() + joint_s + one_row_s > end_s:
            break
    row_s = max((joint_s - one_row_s) / (rows - 1), one_row_s / 100)
    return Tuning(Pace(one_row_s, row_s), joint_s / (rows * one_row_s))


def fastest(context: Context, inputs: Tensors, limit_s: float) -> float:
    """Seconds of the fastest of a few runs; of one, where that takes longer than the limit."""
    best_s, end_s = float("inf"), time.perf_counter() + limit_s
    for _ in range(_TIMES_MAX):
        started_s = time.perf_counter()
        context.run(inputs)
        now_s = time.perf_counter()
        best_s = min(best_s, now_s - started_s)
        if now_s > end_s:
            break
    return best_s


def reaches(context: Context, inputs: Tensors, goal_s: float, limit_s: float) -> bool:
    """Whether a run takes at most so long; given up after the limit, and after two runs at least.

    One such run is enough: what else the device does only adds.
    """
    runs, end_s = 0, time.perf_counter() + limit_s
    while runs < 2 or time.perf_counter() < end_s:
        if fastest(context, inputs, 0) <= goal_s:
            return True
        runs += 1
    return False
