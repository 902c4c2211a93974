"""What MicroBatcher promises to each request, whatever happens to its neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.backends.base import joined, split
from app.domain.errors import ExecutionFailed, QueueFull, ShuttingDown
from app.domain.tensors import DType, ShapeRange, Signature, Tensors, TensorSpec
from app.serving.batcher import MicroBatcher, rows_limit
from app.serving.contexts import ContextThread
from app.serving.requests import Run
from tests.fakes import FakeEngine, Gate, doubled, eventually, row, soon, threads_of_serving


@asynccontextmanager
async def a_batcher(
    gate: Gate | None = None,
    answer: Callable[[Tensors], Tensors] = doubled,
    *,
    rows_max: int = 4,
    queue_rows_max: int = 8,
    contexts: int = 1,
    crowd_rows: int = 1,
) -> AsyncIterator[MicroBatcher]:
    engine = FakeEngine(gate=gate, answer=answer)
    opened = [await ContextThread.opened(engine.open_context) for _ in range(contexts)]
    batcher = MicroBatcher(opened, rows_max=rows_max, queue_rows_max=queue_rows_max, crowd_rows=crowd_rows)
    try:
        yield batcher
    finally:
        if gate:
            gate.open()
        await soon(batcher.close())
        for context in opened:
            await context.close()


def submitted(batcher: MicroBatcher, *values: float) -> asyncio.Task[Run]:
    """A request of one row."""
    return asyncio.create_task(batcher.submit(row(*values), 1))


async def value(task: asyncio.Task[Run]) -> float:
    return float((await soon(task)).outputs["y"][0, 0])


@asynccontextmanager
async def busy(batcher: MicroBatcher, gate: Gate) -> AsyncIterator[None]:
    """The batcher's only context is held at the gate by a run of its own, until the block ends."""
    blocker = submitted(batcher, 99)
    await gate.entered(1)
    yield
    gate.open()
    await blocker


async def test_what_gathers_within_one_turn_of_the_event_loop_is_one_run() -> None:
    async with a_batcher() as batcher:
        runs = await soon(asyncio.gather(*[submitted(batcher, number) for number in (1, 2, 3)]))

        assert [run.outputs["y"].tolist() for run in runs] == [[[2]], [[4]], [[6]]]
        assert [run.batch_rows for run in runs] == [3, 3, 3]
        assert batcher.runs == 1
        assert (batcher.requests, batcher.rows) == (3, 3)


async def test_a_crowd_is_joined_where_joining_does_not_pay() -> None:
    gate = Gate()
    async with a_batcher(gate, rows_max=1, crowd_rows=2) as batcher:
        async with busy(batcher, gate):
            tasks = [submitted(batcher, number) for number in (1, 2, 3)]
            await eventually(lambda: batcher.waiting_rows == 3)

        assert [await value(task) for task in tasks] == [2, 4, 6]
        assert gate.runs == [1, 2, 1]


async def test_requests_that_bring_no_tensors_are_not_joined_in_a_crowd() -> None:
    gate = Gate()
    async with a_batcher(gate, rows_max=1, crowd_rows=4) as batcher:
        answers = [asyncio.get_running_loop().create_future() for _ in range(2)]
        async with busy(batcher, gate):
            for answer in answers:
                batcher.enqueue(lambda: row(1), 1, answer)

        assert [run.batch_rows for run in await soon(asyncio.gather(*answers))] == [1, 1]


async def test_requests_of_several_rows_get_their_own_rows_back() -> None:
    async with a_batcher() as batcher:
        three = {"x": np.array([[1], [2], [3]], np.float32)}

        many, one = await soon(asyncio.gather(batcher.submit(three, 3), batcher.submit(row(4), 1)))

        assert many.outputs["y"].tolist() == [[2], [4], [6]]
        assert one.outputs["y"].tolist() == [[8]]


async def test_what_waits_is_served_in_the_order_of_arrival_up_to_the_limit_of_a_run() -> None:
    gate, order = Gate(), []
    async with a_batcher(gate) as batcher:
        async with busy(batcher, gate):
            waiting = [submitted(batcher, number) for number in range(6)]
            for number, task in enumerate(waiting):
                task.add_done_callback(lambda _, number=number: order.append(number))
            await asyncio.sleep(0)
        await soon(asyncio.gather(*waiting))

    assert gate.runs == [1, 4, 2]
    assert order == [0, 1, 2, 3, 4, 5]


async def test_a_request_that_does_not_fit_any_more_begins_the_next_run() -> None:
    gate = Gate()
    async with a_batcher(gate) as batcher:
        async with busy(batcher, gate):
            sizes = [3, 2, 1, 1]
            waiting = [
                asyncio.create_task(batcher.submit({"x": np.ones((rows, 1), np.float32)}, rows)) for rows in sizes
            ]
            await asyncio.sleep(0)
        await soon(asyncio.gather(*waiting))

    assert gate.runs == [1, 3, 4]


async def test_a_request_of_more_rows_than_a_joint_run_may_have_runs_by_itself() -> None:
    gate = Gate(is_open=True)
    async with a_batcher(gate) as batcher:
        large = {"x": np.ones((7, 1), np.float32)}

        answers = await soon(asyncio.gather(batcher.submit(large, 7), submitted(batcher, 1)))

        assert answers[0].outputs["y"].shape == (7, 1)
        assert sorted(gate.runs) == [1, 7]


async def test_requests_of_different_shapes_are_never_in_one_run() -> None:
    gate = Gate()
    async with a_batcher(gate) as batcher:
        async with busy(batcher, gate):
            waiting = [submitted(batcher, *values) for values in ((1,), (2,), (3, 4), (5, 6), (7,))]
            await asyncio.sleep(0)
        runs = await soon(asyncio.gather(*waiting))

    assert [run.outputs["y"].tolist() for run in runs] == [[[2]], [[4]], [[6, 8]], [[10, 12]], [[14]]]
    assert gate.runs == [1, 2, 2, 1]


async def test_requests_of_different_dtypes_are_never_in_one_run() -> None:
    gate = Gate(is_open=True)
    async with a_batcher(gate) as batcher:
        whole = {"x": np.array([[1]], np.int32)}

        run, _ = await soon(asyncio.gather(batcher.submit(whole, 1), submitted(batcher, 1)))

        assert run.outputs["y"].dtype == np.int32
        assert gate.runs == [1, 1]


async def test_where_rows_are_not_independent_every_request_runs_alone() -> None:
    gate = Gate(is_open=True)
    async with a_batcher(gate, rows_max=1) as batcher:
        await soon(asyncio.gather(*[submitted(batcher, number) for number in (1, 2, 3)]))

    assert gate.runs == [1, 1, 1]


async def test_a_free_context_does_not_wait_for_a_busy_one() -> None:
    gate = Gate()
    async with a_batcher(gate, contexts=2) as batcher:
        first = submitted(batcher, 1)
        await gate.entered(1)

        second = submitted(batcher, 2)
        await gate.entered(2)

        gate.open()
        assert await value(first) == 2
        assert await value(second) == 4


async def test_a_request_that_leaves_the_queue_never_reaches_the_engine() -> None:
    gate = Gate()
    async with a_batcher(gate) as batcher:
        async with busy(batcher, gate):
            first, gone, last = [submitted(batcher, number) for number in (1, 2, 3)]
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.wait({gone})
            assert batcher.waiting_rows == 2

        assert await value(first) == 2
        assert await value(last) == 6
        assert gate.runs == [1, 2]


async def test_a_cancelled_request_leaves_its_batch_neighbours_unharmed() -> None:
    gate = Gate()
    async with a_batcher(gate) as batcher:
        first, cancelled, last = [submitted(batcher, number) for number in (1, 2, 3)]
        await gate.entered(1)

        cancelled.cancel()
        gate.open()

        assert gate.runs == [3]
        assert await value(first) == 2
        assert await value(last) == 6
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await value(submitted(batcher, 4)) == 8


async def test_a_full_queue_refuses_at_once_and_serves_what_it_has_accepted() -> None:
    gate = Gate()
    async with a_batcher(gate, queue_rows_max=2) as batcher:
        async with busy(batcher, gate):
            accepted = [submitted(batcher, number) for number in (1, 2)]
            await asyncio.sleep(0)

            with pytest.raises(QueueFull, match="2 rows wait for this engine, 1 more came, and at most 2 may wait"):
                await batcher.submit(row(3), 1)

        assert [await value(task) for task in accepted] == [2, 4]
        assert batcher.waiting_rows == 0


async def test_a_place_in_the_queue_is_free_again_as_soon_as_its_client_has_gone() -> None:
    gate = Gate()
    async with a_batcher(gate, queue_rows_max=1) as batcher:
        async with busy(batcher, gate):
            gone = submitted(batcher, 1)
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.wait({gone})

            next_one = submitted(batcher, 2)
            await asyncio.sleep(0)

        assert await value(next_one) == 4


async def test_a_single_large_request_is_not_refused_by_an_empty_queue() -> None:
    async with a_batcher(queue_rows_max=2) as batcher:
        run = await batcher.submit({"x": np.ones((5, 1), np.float32)}, 5)

        assert run.outputs["y"].shape == (5, 1)


async def test_a_poisonous_request_fails_alone() -> None:
    gate = Gate(is_open=True)
    async with a_batcher(gate) as batcher:
        first, poison, last = [submitted(batcher, number) for number in (1, -2, 3)]

        with pytest.raises(ExecutionFailed, match="negative"):
            await soon(poison)

        assert await value(first) == 2
        assert await value(last) == 6
        assert gate.runs == [3, 1, 1, 1]


async def test_requests_that_are_tried_again_keep_their_order_and_their_place_before_later_ones() -> None:
    gate, seen = Gate(), []

    def noted(inputs: Tensors) -> Tensors:
        seen.append(inputs["x"].ravel().tolist())
        return doubled(inputs)

    async with a_batcher(gate, noted) as batcher:
        joint = [submitted(batcher, number) for number in (1, -2, 3)]
        await gate.entered(1)
        later = submitted(batcher, 4)
        await asyncio.sleep(0)
        gate.open()
        await soon(asyncio.gather(*joint, later, return_exceptions=True))

    assert seen == [[1], [3], [4]]


async def test_a_cancelled_request_is_not_tried_again_when_its_joint_run_fails() -> None:
    gate = Gate()
    async with a_batcher(gate) as batcher:
        poison, cancelled, last = [submitted(batcher, number) for number in (-1, 2, 3)]
        await gate.entered(1)
        cancelled.cancel()
        await asyncio.wait({cancelled})

        gate.open()
        await asyncio.wait({poison, last})

        assert await value(last) == 6
        assert batcher.waiting_rows == 0
    assert gate.runs == [3, 1, 1]


async def test_after_a_poisonous_request_the_batcher_joins_again() -> None:
    gate = Gate(is_open=True)
    async with a_batcher(gate) as batcher:
        await soon(asyncio.gather(*[submitted(batcher, number) for number in (1, -2)], return_exceptions=True))
        gate.runs.clear()

        await soon(asyncio.gather(*[submitted(batcher, number) for number in (1, 2)]))

    assert gate.runs == [2]


async def test_an_engine_that_raises_something_unknown_fails_the_request_in_the_service_s_own_words() -> None:
    def broken(inputs: Tensors) -> Tensors:
        raise ValueError("/secret/path")

    async with a_batcher(answer=broken) as batcher:
        with pytest.raises(ExecutionFailed, match=r"^The engine failed while it ran: ValueError\.$"):
            await submitted(batcher, 1)


async def test_an_output_that_lost_rows_is_never_split_among_the_requests() -> None:
    def summed(inputs: Tensors) -> Tensors:
        return {"y": inputs["x"].sum(axis=0, keepdims=True)}

    gate = Gate(is_open=True)
    async with a_batcher(gate, summed) as batcher:
        answers = await soon(asyncio.gather(*[submitted(batcher, number) for number in (1, 2, 3)]))
        assert [run.outputs["y"].tolist() for run in answers] == [[[1]], [[2]], [[3]]]

        await soon(asyncio.gather(*[submitted(batcher, number) for number in (1, 2)]))

    assert gate.runs == [3, 1, 1, 1, 1, 1]  # joined once, and never again


async def test_closing_refuses_what_waits_and_lets_what_runs_end() -> None:
    gate = Gate()
    async with a_batcher(gate) as batcher:
        running = submitted(batcher, 1)
        await gate.entered(1)
        waiting = submitted(batcher, 2)
        await asyncio.sleep(0)

        closing = asyncio.create_task(batcher.close())
        with pytest.raises(ShuttingDown):
            await soon(waiting)
        assert not closing.done()
        gate.open()
        await soon(closing)

        assert await value(running) == 2
        with pytest.raises(ShuttingDown):
            await batcher.submit(row(3), 1)


async def test_closing_during_a_joint_run_that_fails_leaves_nobody_waiting() -> None:
    gate = Gate()
    async with a_batcher(gate) as batcher:
        joint = [submitted(batcher, number) for number in (1, -2)]
        await gate.entered(1)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)

        gate.open()
        await soon(closing)

        for task in joint:
            with pytest.raises(ShuttingDown):
                await soon(task)


async def test_calls_to_a_context_all_run_on_its_thread_one_after_another() -> None:
    gate = Gate()
    context = await ContextThread.opened(FakeEngine(gate=gate).open_context)

    calls = [context.call(lambda opened: opened.run(row(1))) for _ in range(3)]
    await gate.entered(1)
    threads = [name for name in threads_of_serving() if "context" in name]
    gate.open()
    await soon(asyncio.gather(*calls))
    await context.close()

    assert len(threads) == 1


async def test_timings_tell_waiting_from_computing() -> None:
    async with a_batcher() as batcher:
        run = await submitted(batcher, 1)

    assert run.queue_ms > 0
    assert run.compute_ms > 0


def test_a_joint_run_has_no_more_rows_than_the_narrowest_range_allows() -> None:
    spec = TensorSpec("x", DType.FLOAT32, (-1, 3))
    narrow = ShapeRange((1, 3), (2, 3), (6, 3))

    assert rows_limit(Signature((spec,), (), {}, 8)) == 8
    assert rows_limit(Signature((spec,), (), {"x": narrow}, 8)) == 6
    assert rows_limit(Signature((spec,), (), {"x": narrow}, 4)) == 4


def test_a_single_request_is_neither_copied_in_nor_out() -> None:
    tensors = row(1)

    assert joined([tensors]) is tensors
    assert split(tensors, [1])[0] is tensors


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 3))
def test_joining_and_splitting_gives_every_request_its_own_rows(rows: list[int], columns: int) -> None:
    parts = [
        {"a": np.full((count, columns), number, np.int32), "b": np.arange(count) + 10 * number}
        for number, count in enumerate(rows)
    ]

    together = joined(parts)
    apart = split(together, rows)

    assert len(together["a"]) == len(together["b"]) == sum(rows)
    for given_part, part in zip(parts, apart, strict=True):
        for name in given_part:
            np.testing.assert_array_equal(part[name], given_part[name])
            assert len(rows) == 1 or not np.shares_memory(part[name], together[name])


async def test_a_burst_over_several_contexts_answers_every_request_with_its_own_rows() -> None:
    async with a_batcher(contexts=3, queue_rows_max=1000) as batcher:
        tasks = []
        for number in range(200):
            tasks.append(submitted(batcher, number))
            if number % 7 == 0:
                await asyncio.sleep(0)

        assert [await value(task) for task in tasks] == [2 * number for number in range(200)]
        await eventually(lambda: batcher.requests == 200)
        assert batcher.runs < 200
