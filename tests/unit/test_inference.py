"""InferenceService apart from its engines: look-ups and time limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from app.domain.builds import EngineRecord
from app.domain.errors import EngineNotFound, RequestTimedOut
from app.serving.pool import EnginePool
from app.serving.service import InferenceService
from tests.fakes import FakeEngine, Gate, engine_record, eventually, row, soon


class Records:
    """Engines by name; a look-up can be held at a gate."""

    def __init__(self) -> None:
        self.version = 1
        self.lookups = 0
        self.gate = threading.Event()
        self.gate.set()

    def find(self, name: str, version: int | None) -> EngineRecord:
        self.lookups += 1
        found = self.version
        assert self.gate.wait(20)
        if name != "net":
            raise EngineNotFound(f"No engine {name}.", hint="See /engines.")
        return engine_record("net", found)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def a_service(records: Records, clock: Clock, gate: Gate | None = None) -> AsyncIterator[InferenceService]:
    pool = EnginePool(lambda _: FakeEngine(gate=gate), budget_bytes=1000, keep_alive_s=0, contexts=1, queue_rows_max=8)
    service = InferenceService(records.find, pool, clock=clock, found_for_s=1)
    yield service
    if gate:
        gate.open()
    records.gate.set()
    await soon(service.close())


async def test_requests_that_come_together_share_one_look_up() -> None:
    records, clock = Records(), Clock()
    async with a_service(records, clock) as service:
        found = await soon(asyncio.gather(*[service.find("net") for _ in range(20)]))

    assert {record.ref for record in found} == {"net:1"}
    assert records.lookups == 1


async def test_a_record_that_has_not_changed_stays_the_same_object() -> None:
    records, clock = Records(), Clock()
    async with a_service(records, clock) as service:
        first = await soon(service.find("net"))
        clock.now_s = 2
        again = await soon(service.find("net"))
        records.version = 2
        clock.now_s = 4
        newer = await soon(service.find("net"))

    assert records.lookups == 3
    assert again is first  # by which others know what they found out about it
    assert newer.ref == "net:2"


async def test_one_that_gives_up_waiting_leaves_the_others_their_look_up() -> None:
    records, clock = Records(), Clock()
    records.gate.clear()
    async with a_service(records, clock) as service:
        first, second = asyncio.create_task(service.find("net")), asyncio.create_task(service.find("net"))
        await eventually(lambda: records.lookups == 1)
        first.cancel()
        await asyncio.wait({first})
        records.gate.set()

        assert (await soon(second)).ref == "net:1"


async def test_a_busy_engine_s_requests_never_wait_for_a_look_up() -> None:
    records, clock = Records(), Clock()
    async with a_service(records, clock) as service:
        await service.find("net")
        records.version, clock.now_s = 2, 0.6
        records.gate.clear()

        assert (await soon(service.find("net"))).version == 1  # while the next look-up is held
        records.gate.set()

        async def found() -> int:
            return (await service.find("net")).version

        while await soon(found()) == 1:
            await asyncio.sleep(0.001)
        assert await soon(found()) == 2 and records.lookups == 2


async def test_what_was_found_is_never_older_than_it_may_be() -> None:
    records, clock = Records(), Clock()
    async with a_service(records, clock) as service:
        await service.find("net")
        records.version, clock.now_s = 2, 1.0

        assert (await soon(service.find("net"))).version == 2


async def test_a_look_up_that_was_under_way_when_the_engine_changed_does_not_count() -> None:
    records, clock = Records(), Clock()
    records.gate.clear()
    async with a_service(records, clock) as service:
        old = asyncio.create_task(service.find("net"))
        await eventually(lambda: records.lookups == 1)
        records.version = 2
        service.forget("net")
        records.gate.set()
        await soon(old)

        assert (await soon(service.find("net"))).version == 2


async def test_a_name_that_is_not_there_is_looked_for_again_each_time() -> None:
    records, clock = Records(), Clock()
    async with a_service(records, clock) as service:
        for _ in range(2):
            with pytest.raises(EngineNotFound):
                await soon(service.find("nobody"))
            assert not service.has_found("nobody")

    assert records.lookups == 2


async def test_a_request_is_refused_when_its_own_time_limit_has_passed_and_its_neighbours_are_answered() -> None:
    gate, records = Gate(), Records()
    async with a_service(records, Clock(), gate) as service:
        gate.open()
        await soon(service.infer("net", row(1)))
        gate.shut()
        held = asyncio.create_task(service.infer("net", row(1)))
        await gate.entered(3)  # the warm-up, the first, and this one
        waiting = asyncio.create_task(service.infer("net", row(2)))

        with pytest.raises(RequestTimedOut, match="10 ms"):
            await soon(service.infer("net", row(3), timeout_s=0.01))

        gate.open()
        answers = [(await soon(task)).outputs["y"] for task in (held, waiting)]
        np.testing.assert_array_equal(answers, [[[2]], [[4]]])
        assert sum(gate.runs[3:]) == 1  # the late one never reached the engine
        assert service.statistics.of("net:1").failures == 1
