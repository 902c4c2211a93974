"""Statistics: how often each engine answered, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.serving.distribution import ROWS, Distribution
from app.serving.requests import Run

STAGES = ("decode", "preprocess", "queue", "compute", "encode")  # of a request, in their order


@dataclass
class RunTotals:
    """Runs of one length."""

    runs: int = 0
    compute_ns: int = 0


@dataclass
class Totals:
    """Sums over one engine's requests since the service started, through loads and unloads."""

    requests: int = 0  # answered
    rows: int = 0  # answered
    runs: int = 0  # a run answers one request or several
    failures: int = 0  # passed every check, and were not answered
    total_ns: int = 0  # of answered requests
    failed_ns: int = 0
    queue_ns: int = 0  # of answered requests, as all below
    input_ns: int = 0  # body or images to tensors
    compute_ns: int = 0  # each request counts the whole run that it took part in
    output_ns: int = 0  # tensors to body
    last_answer_ms: int = 0  # Unix time; 0: none yet
    by_rows: dict[int, RunTotals] = field(default_factory=dict)  # by rows of a run
    seconds: Distribution = field(default_factory=Distribution)  # of answered requests, without de- and encoding
    stage_seconds: dict[str, Distribution] = field(default_factory=lambda: {stage: Distribution() for stage in STAGES})
    run_rows: Distribution = field(default_factory=lambda: Distribution(ROWS))

    def merge(self, other: Totals) -> None:
        """Count another's requests as well."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.last_answer_ms = max(self.last_answer_ms, other.last_answer_ms)
        for rows, of_length in other.by_rows.items():
            mine = self.by_rows.setdefault(rows, RunTotals())
            mine.runs += of_length.runs
            mine.compute_ns += of_length.compute_ns
        self.seconds.merge(other.seconds)
        self.run_rows.merge(other.run_rows)
        for stage, seconds in other.stage_seconds.items():
            self.stage_seconds[stage].merge(seconds)


_SUMS = (
    *("requests", "rows", "runs", "failures"),
    *("total_ns", "failed_ns", "queue_ns", "input_ns", "compute_ns", "output_ns"),
)


class Statistics:
    """Totals by reference, `name:version`. Used on the event loop only."""

    def __init__(self) -> None:
        self._totals: dict[str, Totals] = {}

    def known(self) -> list[tuple[str, Totals]]:
        """Every engine that was asked; a copy of the list, so that another thread may go through it."""
        return list(self._totals.items())

    def of(self, ref: str) -> Totals:
        """The engine's totals; they go on counting."""
        totals = self._totals.get(ref)
        if totals is None:
            totals = self._totals[ref] = Totals()
        return totals

    def add_answer(self, ref: str, runs: Sequence[Run], rows: int, total_s: float, input_s: float) -> None:
        """Count one answered request.

        Args:
            rows: of the request.
            input_s: what of the total went into making tensors of images.
        """
        totals = self.of(ref)
        totals.requests += 1
        totals.rows += rows
        totals.total_ns += int(total_s * 1e9)
        totals.input_ns += int(input_s * 1e9)
        totals.last_answer_ms = time.time_ns() // 1_000_000
        totals.seconds.add(total_s)
        if input_s:
            totals.stage_seconds["preprocess"].add(input_s)
        for run in runs:
            totals.stage_seconds["queue"].add(run.queue_ms / 1e3)
            totals.stage_seconds["compute"].add(run.compute_ms / 1e3)
            compute_ns = int(run.compute_ms * 1e6)
            totals.queue_ns += int(run.queue_ms * 1e6)
            totals.compute_ns += compute_ns
            if run.is_first:
                totals.runs += 1
                totals.run_rows.add(run.batch_rows)
                of_length = totals.by_rows.get(run.batch_rows)
                if of_length is None:
                    of_length = totals.by_rows[run.batch_rows] = RunTotals()
                of_length.runs += 1
                of_length.compute_ns += compute_ns

    def add_coding(self, ref: str, *, input_ns: int, output_ns: int) -> None:
        """Add what a protocol spent on an answered request, before and after the service had it."""
        totals = self.of(ref)
        totals.input_ns += input_ns
        totals.output_ns += output_ns
        totals.total_ns += input_ns + output_ns
        totals.stage_seconds["decode"].add(input_ns / 1e9)
        totals.stage_seconds["encode"].add(output_ns / 1e9)

    def add_failure(self, ref: str, total_s: float) -> None:
        totals = self.of(ref)
        totals.failures += 1
        totals.failed_ns += int(total_s * 1e9)

    def merge(self, totals: Mapping[str, Totals]) -> None:
        """Count what another process has answered."""
        for ref, other in totals.items():
            self.of(ref).merge(other)

    def taken(self) -> dict[str, Totals]:
        """Everything counted since the last time; it is counted anew from here on."""
        taken, self._totals = self._totals, {}
        return taken

    def forget(self, ref: str) -> None:
        """The engine has been deleted; its version is not given again."""
        self._totals.pop(ref, None)
