"""What EnginePool promises: one load at a time, a budget, and that a leased engine stays."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import numpy as np
import pytest

from app.backends.base import LoadedEngine
from app.domain.builds import EngineRecord
from app.domain.errors import EngineStale, EngineTooLarge, EngineUnloadable, ExecutionFailed, InUse, ShuttingDown
from app.domain.tensors import DType, ShapeRange, Signature, Tensors, TensorSpec
from app.serving.pool import EnginePool, EngineState
from tests.fakes import LONG_S, FakeEngine, Gate, doubled, engine_record, eventually, row, soon, threads_of_serving

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Runtime:
    """Loads fake engines: waits, fails and remembers on demand."""

    def __init__(self) -> None:
        self.loads: list[str] = []  # refs, in the order of their loads
        self.engines: list[FakeEngine] = []
        self.failures: list[Exception] = []  # raised by the next loads
        self.make: Callable[[EngineRecord], FakeEngine] = lambda record: FakeEngine(
            device_bytes=record.built.size_bytes
        )
        self.opened = threading.Event()
        self.opened.set()
        self.loading = 0
        self.loading_max = 0

    def load(self, record: EngineRecord) -> LoadedEngine:
        self.loading += 1
        self.loading_max = max(self.loading_max, self.loading)
        try:
            self.loads.append(record.ref)
            assert self.opened.wait(LONG_S), "nobody let the load end"
            if self.failures:
                raise self.failures.pop(0)
            self.engines.append(self.make(record))
            return self.engines[-1]
        finally:
            self.loading -= 1

    def live(self) -> int:
        return sum(not engine.is_closed for engine in self.engines)


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def pool(runtime: Runtime, clock: Clock) -> AsyncIterator[EnginePool]:
    """Room for three engines of 100 bytes; two contexts each; a minute of keep-alive."""
    pool = EnginePool(
        runtime.load,
        budget_bytes=300,
        keep_alive_s=60,
        contexts=2,
        queue_rows_max=64,
        clock=clock,
        room_wait_s=0.05,
        drain_s=0.05,
    )
    yield pool
    runtime.opened.set()
    await soon(pool.close())


async def used(pool: EnginePool, record: EngineRecord, value: float = 1) -> float:
    """One request: y of x = value."""

    async def request() -> float:
        async with pool.lease(record) as engine:
            run = await engine.run(row(value))
        return float(run.outputs["y"][0, 0])

    return await soon(request())


def warm(pool: EnginePool) -> list[str]:
    return sorted(ref for state in pool.states() for ref in state.refs)


A, B, C, D = (engine_record(name) for name in "abcd")


# --- loading ---------------------------------------------------------------------------------------------------


async def test_fifty_requests_for_a_cold_engine_load_it_once(pool: EnginePool, runtime: Runtime) -> None:
    answers = await asyncio.gather(*[used(pool, A, number) for number in range(50)])

    assert answers == [2 * number for number in range(50)]
    assert runtime.loads == ["a:1"]


async def test_engines_are_loaded_one_at_a_time(pool: EnginePool, runtime: Runtime) -> None:
    await asyncio.gather(*[used(pool, record) for record in (A, B, C)])

    assert sorted(runtime.loads) == ["a:1", "b:1", "c:1"]
    assert runtime.loading_max == 1


async def test_two_names_of_one_file_share_a_warm_engine(pool: EnginePool, runtime: Runtime) -> None:
    alias = engine_record("alias", 7, blob="a-1")

    await used(pool, A)
    await used(pool, alias)

    assert runtime.loads == ["a:1"]
    assert [state.refs for state in pool.states()] == [("a:1", "alias:7")]


async def test_a_request_that_gives_up_does_not_cancel_the_load_for_others(pool: EnginePool, runtime: Runtime) -> None:
    runtime.opened.clear()
    impatient, patient = [asyncio.create_task(used(pool, A, number)) for number in (1, 2)]
    await eventually(lambda: bool(runtime.loads))

    impatient.cancel()
    await asyncio.wait({impatient})
    runtime.opened.set()

    assert await patient == 4
    assert runtime.loads == ["a:1"]


async def test_a_load_whose_requests_have_all_given_up_leaves_a_ready_engine(
    pool: EnginePool, runtime: Runtime
) -> None:
    runtime.opened.clear()
    impatient = asyncio.create_task(used(pool, A))
    await eventually(lambda: bool(runtime.loads))
    impatient.cancel()
    await asyncio.wait({impatient})
    runtime.opened.set()

    await eventually(lambda: pool.states()[0].state is EngineState.READY)
    assert pool.states()[0].leases == 0


async def test_a_failed_load_is_told_to_all_who_wait_and_not_remembered(pool: EnginePool, runtime: Runtime) -> None:
    runtime.opened.clear()
    runtime.failures = [EngineStale("Built elsewhere.", hint="Build it again.")]
    waiting = [asyncio.create_task(used(pool, A)) for _ in range(3)]
    await eventually(lambda: bool(runtime.loads))
    runtime.opened.set()

    failures = await asyncio.gather(*waiting, return_exceptions=True)

    assert [type(failure) for failure in failures] == [EngineStale] * 3
    assert pool.states() == []
    assert await used(pool, A) == 2


async def test_what_a_runtime_raises_while_loading_is_wrapped(pool: EnginePool, runtime: Runtime) -> None:
    runtime.failures = [OSError("/secret/path")]

    with pytest.raises(EngineUnloadable, match=r"^The runtime could not load a:1: OSError\.$"):
        await used(pool, A)


async def test_an_engine_is_ready_only_after_every_context_has_run_once(pool: EnginePool, runtime: Runtime) -> None:
    gate = Gate()
    runtime.make = lambda record: FakeEngine(gate=gate)
    request = asyncio.create_task(used(pool, A))

    await gate.entered(1)
    assert pool.states()[0].state is EngineState.LOADING

    gate.open()
    await request
    assert gate.runs == [1, 1, 1]  # two warm-ups and the request
    assert pool.states()[0].state is EngineState.READY


async def test_the_warm_up_has_the_shape_that_the_engine_is_best_at(pool: EnginePool, runtime: Runtime) -> None:
    shapes = []

    def noted(inputs: Tensors) -> Tensors:
        shapes.append(inputs["x"].shape)
        return doubled(inputs)

    runtime.make = lambda record: FakeEngine(answer=noted)
    spec = TensorSpec("x", DType.FLOAT32, (-1, 5))
    ranges = {"x": ShapeRange((1, 5), (3, 5), (8, 5))}

    await pool.load(engine_record("free", signature=Signature((spec,), ())))
    await pool.load(engine_record("profiled", signature=Signature((spec,), (), ranges)))

    assert shapes == [(1, 5), (1, 5), (3, 5), (3, 5)]


async def test_an_engine_that_refuses_the_made_up_warm_up_still_serves(pool: EnginePool, runtime: Runtime) -> None:
    def picky(inputs: Tensors) -> Tensors:
        if inputs["x"].shape[1] < 2:
            raise ExecutionFailed("Too few columns.", hint="")
        return doubled(inputs)

    runtime.make = lambda record: FakeEngine(answer=picky)

    async with pool.lease(A) as engine:
        run = await engine.run(row(1, 2))

    assert run.outputs["y"].tolist() == [[2, 4]]


async def test_when_a_later_context_cannot_be_opened_all_is_given_back(pool: EnginePool, runtime: Runtime) -> None:
    runtime.make = lambda record: FakeEngine(contexts_max=1)

    with pytest.raises(EngineUnloadable):
        await used(pool, A)

    (engine,) = runtime.engines
    assert engine.is_closed
    assert [context.is_closed for context in engine.opened] == [True]
    assert not [name for name in threads_of_serving() if "context" in name]
    assert pool.seating.used_bytes == 0


async def test_a_context_is_opened_used_and_closed_by_one_thread_of_its_own(pool: EnginePool, runtime: Runtime) -> None:
    await asyncio.gather(*[used(pool, A, number) for number in range(20)])
    await pool.unload(A)

    contexts = runtime.engines[0].opened
    assert [context.touched_by for context in contexts] == [{context.thread} for context in contexts]
    assert len({context.thread for context in contexts}) == 2


# --- budget and eviction -----------------------------------------------------------------------------------------


async def test_the_least_recently_used_idle_engine_makes_room(pool: EnginePool, runtime: Runtime, clock: Clock) -> None:
    for record in (A, B, C, A):
        clock.now_s += 1
        await used(pool, record)

    await used(pool, D)

    assert warm(pool) == ["a:1", "c:1", "d:1"]
    assert pool.seating.used_bytes == 300
    assert runtime.live() == 3


async def test_a_leased_engine_is_never_evicted(pool: EnginePool, runtime: Runtime, clock: Clock) -> None:
    async with pool.lease(A) as leased:
        for record in (B, C):
            clock.now_s += 1
            await used(pool, record)
        await used(pool, D)

        assert warm(pool) == ["a:1", "c:1", "d:1"]
        assert (await leased.run(row(3))).outputs["y"][0, 0] == 6


async def test_a_pinned_engine_is_neither_evicted_nor_timed_out_but_unloaded_by_name(
    pool: EnginePool, clock: Clock
) -> None:
    await pool.load(A, pin=True)
    for record in (B, C, D):
        clock.now_s += 1
        await used(pool, record)
    assert warm(pool) == ["a:1", "c:1", "d:1"]

    clock.now_s += 1000
    await pool.unload_unused()
    assert [(state.refs, state.is_pinned) for state in pool.states()] == [(("a:1",), True)]

    assert await pool.unload(A)
    assert pool.states() == []


async def test_an_engine_that_is_pinned_by_one_name_is_not_given_up_by_another(pool: EnginePool) -> None:
    alias = engine_record("alias", 7, blob="a-1")
    await pool.load(A, pin=True)
    await pool.load(alias)

    assert await pool.unload(alias)
    assert [(state.refs, state.pins) for state in pool.states()] == [(("a:1",), ("a:1",))]

    await pool.load(alias, pin=True)
    pool.unpin("a:1")
    assert [(state.refs, state.pins) for state in pool.states()] == [(("a:1", "alias:7"), ("alias:7",))]
    assert await pool.unload(A) and await pool.unload(alias)
    assert pool.states() == []


async def test_an_engine_whose_last_name_is_deleted_leaves_whoever_pinned_it(pool: EnginePool) -> None:
    await pool.load(A, pin=True)

    assert await pool.unload(engine_record("alias", 7, blob="a-1"), is_gone=True)

    assert pool.states() == []


async def test_the_states_tell_in_which_order_engines_would_leave(pool: EnginePool, clock: Clock) -> None:
    for record in (A, B, C, A):
        clock.now_s += 1
        await used(pool, record)
    await pool.load(B, pin=True)

    def positions() -> dict[str, int | None]:
        return {state.refs[0]: state.eviction_position for state in pool.states()}

    assert positions() == {"a:1": 2, "b:1": None, "c:1": 1}
    async with pool.lease(C):
        assert positions() == {"a:1": 1, "b:1": None, "c:1": None}
    await used(pool, D)
    assert warm(pool) == ["b:1", "c:1", "d:1"]  # a was the next to leave, for c has been used since


async def test_as_many_engines_leave_as_the_new_one_needs(pool: EnginePool) -> None:
    for record in (A, B, C):
        await used(pool, record)

    await used(pool, engine_record("wide", size_bytes=200))

    assert warm(pool) == ["c:1", "wide:1"]


async def test_a_load_waits_for_a_lease_to_end_when_nothing_is_idle(runtime: Runtime) -> None:
    pool = EnginePool(runtime.load, budget_bytes=100, keep_alive_s=0, contexts=1, queue_rows_max=8, room_wait_s=LONG_S)
    async with pool.lease(A):
        waiting = asyncio.create_task(used(pool, B))
        await eventually(lambda: "b:1" in warm(pool))
        assert not waiting.done()

    assert await soon(waiting) == 2
    assert warm(pool) == ["b:1"]
    await pool.close()


async def test_engines_in_use_that_leave_no_room_are_an_error_after_a_while(pool: EnginePool, runtime: Runtime) -> None:
    big = engine_record("big", size_bytes=250)
    async with pool.lease(A):
        with pytest.raises(EngineTooLarge, match="engines in use hold"):
            await used(pool, big)

    assert runtime.loads == ["a:1"]
    assert await used(pool, big) == 2


@pytest.fixture
async def shared(runtime: Runtime, clock: Clock) -> AsyncIterator[EnginePool]:
    """A pool without a budget to speak of, on a device of 350 bytes that only its engines use."""
    pool = EnginePool(
        runtime.load,
        budget_bytes=MIB,
        keep_alive_s=60,
        contexts=1,
        queue_rows_max=8,
        free_bytes=lambda backend: 350 - 100 * runtime.live(),
        clock=clock,
    )
    yield pool
    await soon(pool.close())


async def test_idle_engines_leave_when_the_device_has_too_little_left_for_the_next(
    shared: EnginePool, clock: Clock
) -> None:
    for record in (A, B, C):
        clock.now_s += 1
        await used(shared, record)
    await used(shared, A)

    assert await used(shared, D) == 2

    assert warm(shared) == ["a:1", "c:1", "d:1"]


async def test_an_engine_that_the_device_has_no_room_for_is_refused_with_figures(
    shared: EnginePool, runtime: Runtime
) -> None:
    async with shared.lease(A):
        with pytest.raises(EngineTooLarge, match="the device has 1 MiB left"):
            await used(shared, engine_record("big", size_bytes=300))

    assert runtime.loads == ["a:1"]


async def test_a_build_gets_room_from_idle_engines_the_least_recently_used_first(
    shared: EnginePool, clock: Clock
) -> None:
    for record in (A, B, C):
        clock.now_s += 1
        await used(shared, record)

    enough = await soon(shared.seating.free_up(50, "any"))
    some = await soon(shared.seating.free_up(200, "any"))

    assert (enough.free_bytes, enough.evicted) == (50, ())
    assert (some.free_bytes, some.evicted) == (250, ("a:1", "b:1"))
    assert warm(shared) == ["c:1"]


async def test_engines_in_use_and_pinned_ones_stay_however_much_a_build_wants(shared: EnginePool) -> None:
    await soon(shared.load(A, pin=True))
    await used(shared, B)
    async with shared.lease(C):
        room = await soon(shared.seating.free_up(MIB, "any"))

    assert (room.free_bytes, room.evicted) == (150, ("b:1",))
    assert warm(shared) == ["a:1", "c:1"]


async def test_an_engine_larger_than_the_budget_is_refused_at_once_and_evicts_nothing(
    runtime: Runtime,
) -> None:
    pool = EnginePool(runtime.load, budget_bytes=3 * MIB, keep_alive_s=0, contexts=1, queue_rows_max=8)
    await used(pool, A)

    with pytest.raises(EngineTooLarge, match="giant:1 needs 4 MiB; the budget of all engines is 3 MiB"):
        await used(pool, engine_record("giant", size_bytes=4 * MIB))

    assert warm(pool) == ["a:1"]
    await pool.close()


async def test_the_second_load_knows_what_the_first_one_measured(pool: EnginePool, runtime: Runtime) -> None:
    runtime.make = lambda record: FakeEngine(device_bytes=250 if record.name == "a" else 100)
    await used(pool, A)
    await pool.unload(A)
    await used(pool, B)

    await used(pool, A)

    assert warm(pool) == ["a:1"]


async def test_an_engine_that_turns_out_larger_than_its_file_makes_others_leave(
    pool: EnginePool, runtime: Runtime
) -> None:
    await used(pool, A)
    await used(pool, B)
    runtime.make = lambda record: FakeEngine(device_bytes=150)

    await used(pool, C)

    assert warm(pool) == ["b:1", "c:1"]
    assert pool.seating.used_bytes <= pool.seating.budget_bytes


async def test_an_engine_that_turns_out_larger_than_the_budget_is_closed_again(
    pool: EnginePool, runtime: Runtime
) -> None:
    runtime.make = lambda record: FakeEngine(device_bytes=301)

    for _ in range(2):
        with pytest.raises(EngineTooLarge):
            await used(pool, A)

    assert runtime.loads == ["a:1"]  # the second time it was known
    assert runtime.live() == 0


@pytest.mark.parametrize("failure", [MemoryError(), EngineUnloadable("No memory.", hint="")])
async def test_a_load_that_fails_for_memory_evicts_what_is_idle_and_is_tried_once_more(
    pool: EnginePool, runtime: Runtime, failure: Exception
) -> None:
    await used(pool, A)
    runtime.failures = [failure]

    assert await used(pool, B) == 2

    assert runtime.loads == ["a:1", "b:1", "b:1"]
    assert warm(pool) == ["b:1"]


async def test_a_load_that_fails_for_memory_with_nothing_to_evict_fails(pool: EnginePool, runtime: Runtime) -> None:
    runtime.failures = [MemoryError()]

    with pytest.raises(EngineTooLarge, match="no memory left for a:1"):
        await used(pool, A)

    assert runtime.loads == ["a:1"]


# --- leaving -----------------------------------------------------------------------------------------------------


async def test_an_engine_that_nobody_uses_for_the_keep_alive_time_leaves(
    pool: EnginePool, runtime: Runtime, clock: Clock
) -> None:
    await used(pool, A)
    clock.now_s += 30
    await used(pool, B)
    clock.now_s += 30

    await pool.unload_unused()

    assert warm(pool) == ["b:1"]
    assert runtime.live() == 1


async def test_a_leased_engine_outlives_its_keep_alive(pool: EnginePool, clock: Clock) -> None:
    async with pool.lease(A):
        clock.now_s += 1000
        await pool.unload_unused()
        assert warm(pool) == ["a:1"]


async def test_a_load_gives_its_engine_a_keep_alive_of_its_own(pool: EnginePool, clock: Clock) -> None:
    await used(pool, A)
    assert (await pool.load(B, keep_alive_s=10)).keep_alive_s == 10
    await pool.load(C, keep_alive_s=0)

    clock.now_s += 10
    await pool.unload_unused()
    assert warm(pool) == ["a:1", "c:1"]

    clock.now_s += 1e6
    await pool.unload_unused()
    assert warm(pool) == ["c:1"]


async def test_an_engine_with_a_short_keep_alive_of_its_own_leaves_by_itself(runtime: Runtime) -> None:
    pool = EnginePool(runtime.load, budget_bytes=300, keep_alive_s=0, contexts=1, queue_rows_max=8)
    await used(pool, B)
    await pool.load(A, keep_alive_s=0.02)

    await eventually(lambda: warm(pool) == ["b:1"])
    await pool.close()


async def test_a_later_load_leaves_pin_and_keep_alive_as_they_were_unless_it_says_otherwise(pool: EnginePool) -> None:
    await pool.load(A, pin=True, keep_alive_s=10)

    kept = await pool.load(A)
    changed = await pool.load(A, pin=False, keep_alive_s=20)

    assert (kept.is_pinned, kept.keep_alive_s) == (True, 10)
    assert (changed.is_pinned, changed.keep_alive_s) == (False, 20)


async def test_with_a_keep_alive_of_zero_engines_stay(runtime: Runtime, clock: Clock) -> None:
    pool = EnginePool(runtime.load, budget_bytes=300, keep_alive_s=0, contexts=1, queue_rows_max=8, clock=clock)
    await used(pool, A)
    clock.now_s += 1e6

    await pool.unload_unused()

    assert warm(pool) == ["a:1"]
    await pool.close()


async def test_unused_engines_leave_by_themselves(runtime: Runtime) -> None:
    pool = EnginePool(runtime.load, budget_bytes=300, keep_alive_s=0.02, contexts=1, queue_rows_max=8)

    await used(pool, A)

    await eventually(lambda: not pool.states())
    assert runtime.live() == 0
    await pool.close()


async def test_unloading_waits_for_leases_and_new_requests_load_anew_afterwards(runtime: Runtime, clock: Clock) -> None:
    pool = EnginePool(
        runtime.load, budget_bytes=300, keep_alive_s=0, contexts=1, queue_rows_max=8, clock=clock, drain_s=LONG_S
    )
    live_before_load: list[int] = []

    def made(record: EngineRecord) -> FakeEngine:
        live_before_load.append(runtime.live())
        return FakeEngine()

    runtime.make = made
    async with AsyncExitStack() as lease:
        engine = await lease.enter_async_context(pool.lease(A))
        unloading = asyncio.create_task(pool.unload(A))
        await eventually(lambda: pool.states()[0].state is EngineState.DRAINING)

        late = asyncio.create_task(used(pool, A, 5))
        await eventually(lambda: len(pool.states()) == 2)
        assert (await engine.run(row(4))).outputs["y"][0, 0] == 8
        assert runtime.loads == ["a:1"]
        assert not unloading.done()

    assert await soon(unloading)
    assert await soon(late) == 10
    assert live_before_load == [0, 0]  # never two copies at once
    assert [engine.is_closed for engine in runtime.engines] == [True, False]
    await pool.close()


async def test_unloading_an_engine_that_stays_in_use_says_so_and_goes_on(pool: EnginePool, runtime: Runtime) -> None:
    async with pool.lease(A):
        with pytest.raises(InUse, match="Requests still use a:1"):
            await pool.unload(A)

    await eventually(lambda: not pool.states())
    assert runtime.live() == 0


async def test_unloading_a_cold_engine_changes_nothing(pool: EnginePool) -> None:
    await used(pool, B)

    assert not await pool.unload(A)

    assert warm(pool) == ["b:1"]


async def test_closing_lets_runs_end_refuses_the_rest_and_leaves_no_thread(runtime: Runtime) -> None:
    pool = EnginePool(runtime.load, budget_bytes=300, keep_alive_s=60, contexts=1, queue_rows_max=8)
    gate = Gate(is_open=True)
    runtime.make = lambda record: FakeEngine(gate=gate)
    await pool.load(A)
    await pool.load(B)
    gate.shut()
    running = asyncio.create_task(used(pool, A, 1))
    await gate.entered(3)
    waiting = asyncio.create_task(used(pool, A, 2))
    await eventually(lambda: any(state.waiting for state in pool.states()))

    closing = asyncio.create_task(pool.close())
    with pytest.raises(ShuttingDown):
        await soon(waiting)
    gate.open()
    await soon(closing)

    assert await running == 2
    with pytest.raises(ShuttingDown):
        await used(pool, A)
    assert runtime.live() == 0
    assert threads_of_serving() == []


async def test_closing_while_an_engine_loads_leaves_nothing_behind(runtime: Runtime) -> None:
    pool = EnginePool(runtime.load, budget_bytes=300, keep_alive_s=60, contexts=1, queue_rows_max=8)
    runtime.opened.clear()
    requests = [asyncio.create_task(used(pool, record)) for record in (A, B)]
    await eventually(lambda: bool(runtime.loads))

    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    runtime.opened.set()
    await soon(closing)

    for failure in await asyncio.gather(*requests, return_exceptions=True):
        assert isinstance(failure, ShuttingDown)
    assert len(runtime.loads) == 1
    assert runtime.live() == 0
    assert threads_of_serving() == []


async def test_loading_and_unloading_again_and_again_leaves_nothing_behind(pool: EnginePool, runtime: Runtime) -> None:
    for _ in range(30):
        await used(pool, A)
        await pool.unload(A)

    assert len(runtime.loads) == 30
    assert runtime.live() == 0
    assert not [name for name in threads_of_serving() if "context" in name]


async def test_the_states_tell_how_an_engine_was_used(pool: EnginePool, clock: Clock) -> None:
    async with pool.lease(A) as engine:
        await engine.run({"x": np.ones((3, 1), np.float32)})
        await engine.run(row(1))
    clock.now_s += 7

    (state,) = pool.states()

    assert (state.blob, state.refs, state.state) == (A.blob, ("a:1",), EngineState.READY)
    assert (state.requests, state.rows, state.runs) == (2, 4, 2)
    assert (state.leases, state.waiting, state.contexts, state.device_bytes) == (0, 0, 2, 100)
    assert (state.last_used_s_ago, state.loaded_s_ago) == (7, 7)
    assert state.load_s > 0
