"""What is measured about an engine at its load, and what follows from it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from app.backends.base import Context
from app.domain.tensors import Tensors
from app.serving.batcher import LOOKS_MAX, MicroBatcher
from app.serving.contexts import ContextThread
from app.serving.requests import Run
from app.serving.tuning import CROWD_ROWS, ON_LOOP_S, Pace, Tuning, measured, reaches
from tests.fakes import FakeContext, FakeEngine, Gate, row, soon

INF = float("inf")


@pytest.mark.parametrize(
    ("share", "contexts", "rows_max", "rows"),
    [(0.95, 1, 32, CROWD_ROWS), (0.95, 1, 2, 2), (0.95, 1, 1, 1), (0.95, 2, 32, 1), (1.2, 1, 32, 1), (INF, 1, 32, 1)],
)
def test_rows_that_are_joined_for_nothing_are_joined_by_an_only_context(
    share: float, contexts: int, rows_max: int, rows: int
) -> None:
    assert Tuning(Pace(1, 1), share).crowd_rows(contexts, rows_max) == rows


class Slow(Context):
    """A run takes `first_s`, and `more_s` for each row after the first."""

    def __init__(self, first_s: float, more_s: float) -> None:
        self.first_s, self.more_s = first_s, more_s
        self.spent_s = 0.0

    def run(self, inputs: Tensors) -> Tensors:
        took_s = self.first_s + self.more_s * (len(inputs["x"]) - 1)
        time.sleep(took_s)
        self.spent_s += took_s
        return inputs

    def close(self) -> None: ...


def ones(rows: int) -> Tensors:
    return {"x": np.ones((rows, 1), np.float32)}


def test_joining_pays_where_more_rows_cost_little() -> None:
    assert measured(Slow(0.01, 0.0), ones, 8).joining_pays


def test_joining_does_not_pay_where_each_row_costs_as_much_as_the_first() -> None:
    assert not measured(Slow(0.01, 0.01), ones, 8).joining_pays


def test_rows_that_are_never_joined_are_not_measured_together() -> None:
    assert not measured(Slow(0.001, 0.0), ones, 1).joining_pays


def test_measuring_a_slow_engine_is_given_up_in_time() -> None:
    slow = Slow(0.2, 0.2)

    assert not measured(slow, ones, 8).joining_pays
    assert slow.spent_s < 1


def test_a_goal_is_reached_by_the_first_run_that_is_fast_enough_whatever_held_up_the_others() -> None:
    slow = Slow(0.01, 0.0)
    goal_s = 0.005
    later = threading.Timer(0.05, lambda: setattr(slow, "first_s", 0.001))
    later.start()

    assert reaches(slow, ones(1), goal_s, limit_s=60)
    later.join()


def test_a_goal_is_given_up_at_the_limit_but_not_for_one_run() -> None:
    slow = Slow(0.01, 0.0)

    assert not reaches(slow, ones(1), 0.005, limit_s=0)
    assert slow.spent_s == pytest.approx(0.02)


def test_the_pace_is_a_line_that_later_runs_correct() -> None:
    pace = Pace(0.002, 0.001)
    assert pace.seconds(1) == pytest.approx(0.002)
    assert pace.seconds(5) == pytest.approx(0.006)
    assert pace.rows_within(0.006) == 5
    assert pace.rows_within(0.0001) == 1

    for _ in range(200):
        pace.learn(1, 0.004)

    assert pace.seconds(1) == pytest.approx(0.004, rel=0.01)
    assert pace.rows_within(0.006) == 2


def test_one_run_that_was_held_up_changes_the_pace_little() -> None:
    pace = Pace(0.0001, 0.0001)

    pace.learn(1, 60)

    assert pace.seconds(1) < ON_LOOP_S


@asynccontextmanager
async def a_batcher(
    pace: Pace, *, wide: bool = False, gate: Gate | None = None, rows_max: int = 4
) -> AsyncIterator[tuple[MicroBatcher, FakeEngine]]:
    """With one context, or with two and the wide one."""
    engine = FakeEngine(gate=gate)
    contexts = [await ContextThread.opened(engine.open_context) for _ in range(3 if wide else 1)]
    last = contexts[-1] if wide else None
    batcher = MicroBatcher(contexts[: 2 if wide else 1], rows_max=rows_max, queue_rows_max=100, wide=last, pace=pace)
    yield batcher, engine
    await soon(batcher.close())
    for context in contexts:
        await soon(context.close())


def short() -> Pace:
    """Of an engine whose runs stay on the event loop."""
    return Pace(ON_LOOP_S / 10, ON_LOOP_S / 100)


async def submitted_together(batcher: MicroBatcher, *values: float, return_exceptions: bool = False) -> list[Any]:
    requests = (batcher.submit(row(value), 1) for value in values)
    return await asyncio.gather(*requests, return_exceptions=return_exceptions)


def used(context: FakeContext) -> set[int]:
    return context.touched_by - {context.thread}


async def test_a_short_run_stays_on_the_event_loop_and_still_joins_what_has_gathered() -> None:
    async with a_batcher(short()) as (batcher, engine):
        runs = await soon(submitted_together(batcher, 1, 2, 3))

        assert used(engine.opened[0]) == {threading.get_ident()}
        assert [run.outputs["y"][0, 0] for run in runs] == [2, 4, 6]
        assert [run.batch_rows for run in runs] == [3, 3, 3]


async def after(turns: int, batcher: MicroBatcher, value: float) -> Run:
    """A request that comes so many turns of the event loop later."""
    for _ in range(turns):
        await asyncio.sleep(0)
    return await batcher.submit(row(value), 1)


async def test_requests_that_come_while_others_are_read_join_their_short_run() -> None:
    async with a_batcher(short()) as (batcher, _):
        runs = await soon(asyncio.gather(*(after(turns, batcher, 1) for turns in (0, 0, 1))))

        assert [run.batch_rows for run in runs] == [3, 3, 3]


async def test_a_lone_request_waits_for_nobody() -> None:
    async with a_batcher(short()) as (batcher, _):
        runs = await soon(asyncio.gather(*(after(turns, batcher, 1) for turns in (0, 1))))

        assert [run.batch_rows for run in runs] == [1, 1]


async def test_a_short_run_waits_for_a_few_turns_only() -> None:
    async with a_batcher(short(), rows_max=32) as (batcher, _):
        runs = await soon(asyncio.gather(*(after(turns, batcher, 1) for turns in (0, *range(20)))))

        assert runs[0].batch_rows == 2 + LOOKS_MAX


async def test_a_long_run_never_holds_up_the_event_loop() -> None:
    async with a_batcher(Pace(2 * ON_LOOP_S, ON_LOOP_S)) as (batcher, engine):
        await soon(submitted_together(batcher, 1))

        assert used(engine.opened[0]) == set()


async def test_a_failing_short_run_fails_its_own_request_only() -> None:
    async with a_batcher(short()) as (batcher, _):
        first, poison, last = await soon(submitted_together(batcher, 1, -2, 3, return_exceptions=True))

        assert (first.outputs["y"][0, 0], last.outputs["y"][0, 0]) == (2, 6)
        assert "negative" in str(poison.detail)


async def test_the_lone_request_has_the_wide_context_and_nothing_runs_beside_it() -> None:
    gate = Gate()
    async with a_batcher(Pace(1, 1), wide=True, gate=gate) as (batcher, engine):
        *narrow, wide = engine.opened

        lone = asyncio.create_task(batcher.submit(row(1), 1))
        await gate.entered(1)
        second = asyncio.create_task(batcher.submit(row(2), 1))
        await asyncio.sleep(0.05)
        assert (wide.runs, batcher.waiting_rows) == (1, 1)
        gate.open()
        await soon(asyncio.gather(lone, second))

        assert (wide.runs, [context.runs for context in narrow]) == (2, [0, 0])


async def test_as_many_requests_as_there_are_other_contexts_leave_the_wide_one_alone() -> None:
    gate = Gate()
    async with a_batcher(Pace(1, 1), wide=True, gate=gate, rows_max=1) as (batcher, engine):
        *narrow, wide = engine.opened

        together = asyncio.create_task(submitted_together(batcher, 1, 2))
        await gate.entered(2)
        gate.open()
        await soon(together)

        assert (wide.runs, [context.runs for context in narrow]) == (0, [1, 1])


async def test_a_context_has_its_next_run_already_while_many_wait_whose_rows_are_not_joined() -> None:
    gate = Gate()
    async with a_batcher(Pace(1, 1), wide=True, gate=gate, rows_max=1) as (batcher, engine):
        *narrow, wide = engine.opened

        together = asyncio.create_task(submitted_together(batcher, *range(1, 8)))
        await gate.entered(2)
        await asyncio.sleep(0.05)
        # Two run, two are behind them; of the other three no context has any: they may still be cancelled.
        assert batcher.waiting_rows == 3
        gate.open()
        runs = await soon(together)

        assert [float(run.outputs["y"][0, 0]) for run in runs] == [2.0 * value for value in range(1, 8)]
        assert wide.runs + sum(context.runs for context in narrow) == 7 == batcher.runs


async def test_rows_that_are_joined_wait_to_be_joined() -> None:
    gate = Gate()
    async with a_batcher(Pace(1, 1), wide=True, gate=gate, rows_max=4) as (batcher, engine):
        waves = []
        for number in range(2):
            waves.append(asyncio.create_task(submitted_together(batcher, 1, 2, 3, 4)))
            await gate.entered(number + 1)
        waves.append(asyncio.create_task(submitted_together(batcher, 5, 6, 7, 8)))
        await asyncio.sleep(0.05)
        assert batcher.waiting_rows == 4
        gate.open()
        await soon(asyncio.gather(*waves))

        assert batcher.runs == sum(context.runs for context in engine.opened) == 3
