"""What Warmer promises: pinned engines and those of the last run are warm without being asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from app.backends.base import LoadedEngine
from app.domain.builds import EngineRecord
from app.domain.errors import EngineNotFound, EngineStale
from app.serving.pool import EnginePool
from app.serving.seats import WarmState
from app.serving.service import InferenceService
from app.serving.warmer import Warmer
from app.storage.remembered import Remembered, WarmFile
from tests.fakes import LONG_S, FakeEngine, engine_record, eventually, row, soon


class Machine:
    """One service after another over the same published engines and the same file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.published = {record.ref: record for record in map(engine_record, "abcd")}
        self.stale: set[str] = set()
        self.loads: list[str] = []
        self.budget_bytes = 300
        self.opened = threading.Event()
        self.opened.set()
        self.now_s = 1000.0
        self._running: list[tuple[Warmer, InferenceService]] = []

    def find(self, name: str, version: int | None) -> EngineRecord:
        known = [record for record in self.published.values() if record.name == name]
        known = [record for record in known if version in (None, record.version)]
        if not known:
            raise EngineNotFound(f"There is no engine {name}.", hint="")
        return max(known, key=lambda record: record.version)

    def load(self, record: EngineRecord) -> LoadedEngine:
        self.loads.append(record.ref)
        assert self.opened.wait(LONG_S)
        if record.ref in self.stale:
            raise EngineStale(f"{record.ref} was built elsewhere.", hint="")
        return FakeEngine()

    def started(self, *pinned: str) -> tuple[Warmer, InferenceService]:
        pool = EnginePool(
            self.load,
            budget_bytes=self.budget_bytes,
            keep_alive_s=60,
            contexts=1,
            queue_rows_max=8,
            clock=lambda: self.now_s,
        )
        service = InferenceService(self.find, pool, found_for_s=0)
        file = WarmFile(self.file)
        warmer = Warmer(service, pinned, file, clock=lambda: self.now_s, look_every_s=0.001)
        warmer.start()
        self._running.append((warmer, service))
        return warmer, service

    async def ready(self, *pinned: str) -> tuple[Warmer, InferenceService]:
        warmer, service = self.started(*pinned)
        await eventually(lambda: not warmer.is_starting)
        return warmer, service

    async def use(self, service: InferenceService, *refs: str) -> None:
        for ref in refs:
            self.now_s += 1
            await soon(service.infer(ref, row(1)))

    async def stop(self) -> None:
        self.opened.set()
        while self._running:
            warmer, service = self._running.pop()
            await soon(warmer.close())
            await soon(service.close())


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path / "warm.json")
    yield machine
    await machine.stop()


def warm(service: InferenceService) -> dict[str, WarmState]:
    return {ref: state for state in service.states() for ref in state.refs}


def order(service: InferenceService) -> list[str]:
    """What may be evicted, the next to leave first."""
    states = [state for state in service.states() if state.eviction_position is not None]
    return [state.refs[0] for state in sorted(states, key=lambda state: state.eviction_position or 0)]


# --- pins ----------------------------------------------------------------------------------------------------------


async def test_pinned_engines_are_loaded_at_the_start_and_stay(machine: Machine) -> None:
    warmer, service = await machine.ready("a", "b:1")

    assert {ref: state.is_pinned for ref, state in warm(service).items()} == {"a:1": True, "b:1": True}
    assert warmer.problems == []


@pytest.mark.parametrize("ref", ["missing", "b:7", "No Name", "b:x"])
async def test_a_pinned_engine_that_cannot_be_found_is_told_and_the_others_are_loaded(
    machine: Machine, ref: str
) -> None:
    warmer, service = await machine.ready(ref, "a")

    assert list(warm(service)) == ["a:1"]
    (problem,) = warmer.problems
    assert problem.startswith(f"The pinned engine {ref} is not loaded: ")


async def test_a_stale_pinned_engine_is_told_until_its_new_version_is_there(machine: Machine) -> None:
    machine.stale = {"a:1"}
    warmer, service = await machine.ready("a")
    assert warmer.problems == ["The pinned engine a is not loaded: a:1 was built elsewhere."]

    machine.published["a:2"] = engine_record("a", 2)
    machine.now_s += 60

    await eventually(lambda: warmer.problems == [])
    assert {ref: state.is_pinned for ref, state in warm(service).items()} == {"a:2": True}


async def test_a_pinned_engine_that_does_not_load_is_left_alone_for_a_minute(machine: Machine) -> None:
    machine.stale = {"a:1"}
    await machine.ready("a")
    machine.now_s += 59
    await asyncio.sleep(0.05)

    assert machine.loads == ["a:1"]


async def test_a_pin_by_name_passes_to_the_newest_version(machine: Machine) -> None:
    _, service = await machine.ready("a", "b:1")
    machine.published["a:2"], machine.published["b:2"] = engine_record("a", 2), engine_record("b", 2)

    await eventually(lambda: "a:2" in warm(service) and not warm(service)["a:1"].is_pinned)

    assert warm(service)["a:2"].is_pinned and warm(service)["b:1"].is_pinned
    assert "b:2" not in warm(service)


async def test_a_pinned_engine_that_its_owner_unloads_is_not_loaded_again(machine: Machine) -> None:
    _, service = await machine.ready("a")

    await service.unload("a")
    await asyncio.sleep(0.05)

    assert warm(service) == {} and machine.loads == ["a:1"]


# --- the last run ----------------------------------------------------------------------------------------------------


async def test_what_was_warm_is_warm_again_after_a_restart_in_the_same_order(machine: Machine) -> None:
    _, service = await machine.ready()
    await machine.use(service, "a", "b", "c", "a")
    await service.load("b", keep_alive_s=7)
    await machine.use(service, "c", "a")
    await machine.stop()

    _, service = await machine.ready()

    assert order(service) == ["b:1", "c:1", "a:1"]
    assert {ref: state.keep_alive_s for ref, state in warm(service).items()} == {"a:1": 60, "b:1": 7, "c:1": 60}


async def test_it_is_remembered_while_the_service_runs_for_it_may_be_killed(machine: Machine) -> None:
    _, service = await machine.ready()
    file = WarmFile(machine.file)

    await machine.use(service, "a")
    await eventually(lambda: [engine.refs for engine in file.read()] == [("a:1",)])

    await service.unload("a")
    await eventually(lambda: file.read() == [])


async def test_a_pin_by_request_is_remembered_and_one_by_setting_is_not(machine: Machine) -> None:
    _, service = await machine.ready("a")
    await service.load("b", pin=True)
    await machine.stop()

    _, service = await machine.ready()

    assert {ref: state.is_pinned for ref, state in warm(service).items()} == {"a:1": False, "b:1": True}


async def test_where_there_is_less_room_the_most_recently_used_are_loaded(machine: Machine) -> None:
    _, service = await machine.ready()
    await machine.use(service, "a", "b", "c")
    await machine.stop()
    machine.loads.clear()
    machine.budget_bytes = 200

    _, service = await machine.ready()

    assert order(service) == ["b:1", "c:1"] and machine.loads == ["b:1", "c:1"]


async def test_what_was_deleted_or_is_stale_now_does_not_hold_up_the_others(machine: Machine) -> None:
    _, service = await machine.ready()
    await machine.use(service, "a", "b", "c")
    await machine.stop()
    del machine.published["a:1"]
    machine.stale = {"b:1"}

    warmer, service = await machine.ready()

    assert list(warm(service)) == ["c:1"] and warmer.problems == []


async def test_an_engine_whose_load_ends_the_process_is_not_tried_at_the_next_start(machine: Machine) -> None:
    _, service = await machine.ready()
    await machine.use(service, "a", "b")
    await machine.stop()
    machine.loads.clear()
    machine.opened.clear()

    machine.started()
    await eventually(lambda: machine.loads == ["a:1"])

    assert [engine.refs for engine in WarmFile(machine.file).read()] == [("b:1",)]


async def test_a_stop_in_the_middle_of_the_start_forgets_nothing(machine: Machine) -> None:
    _, service = await machine.ready()
    await machine.use(service, "a", "b")
    await machine.stop()
    machine.loads.clear()
    machine.opened.clear()
    warmer, _ = machine.started()
    await eventually(lambda: machine.loads == ["a:1"])

    await warmer.close()

    assert [engine.refs for engine in WarmFile(machine.file).read()] == [("a:1",), ("b:1",)]


@pytest.mark.parametrize("text", ["", "{", '{"engines": [{"refs": 1}]}', "\0" * 100])
async def test_a_damaged_file_counts_as_an_empty_one(machine: Machine, text: str) -> None:
    machine.file.write_text(text)

    warmer, service = await machine.ready("a")

    assert list(warm(service)) == ["a:1"] and not warmer.is_starting


class SlowFile(WarmFile):
    """Its second write takes as long as the test likes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.entered, self.may_end = threading.Event(), threading.Event()
        self.writes, self.under_way, self.overlapped = 0, 0, False

    def write(self, engines: Sequence[Remembered]) -> None:
        self.writes += 1
        self.under_way += 1
        self.overlapped |= self.under_way > 1
        if self.writes == 2:
            self.entered.set()
            assert self.may_end.wait(LONG_S)
        super().write(engines)
        self.under_way -= 1


async def test_what_is_warm_at_the_end_is_written_after_what_was_being_written(machine: Machine) -> None:
    pool = EnginePool(machine.load, budget_bytes=300, keep_alive_s=60, contexts=1, queue_rows_max=8)
    service, file = InferenceService(machine.find, pool, found_for_s=0), SlowFile(machine.file)
    warmer = Warmer(service, (), file, clock=lambda: machine.now_s, look_every_s=0.001)
    warmer.start()
    await eventually(lambda: not warmer.is_starting)
    await machine.use(service, "a")
    await eventually(file.entered.is_set)
    await machine.use(service, "b")

    closing = asyncio.create_task(warmer.close())
    await asyncio.sleep(0.02)
    file.may_end.set()
    await soon(closing)
    await soon(service.close())

    assert not file.overlapped
    assert [engine.refs for engine in WarmFile(machine.file).read()] == [("a:1",), ("b:1",)]


async def test_two_names_of_one_file_are_both_remembered(machine: Machine) -> None:
    machine.published["alias:1"] = replace(engine_record("alias"), blob=machine.published["a:1"].blob)
    _, service = await machine.ready()
    await machine.use(service, "a", "alias")
    await machine.stop()

    _, service = await machine.ready()

    assert set(warm(service)) == {"a:1", "alias:1"} and len(service.states()) == 1
