"""What the serving layer counts, over a runtime that waits and fails on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.domain.errors import ExecutionFailed
from app.serving.pool import EnginePool
from app.serving.requests import Run
from app.serving.service import InferenceService
from app.serving.statistics import STAGES, Statistics
from tests.fakes import FakeEngine, Gate, engine_record, eventually, row

RECORD = engine_record()


@pytest.fixture
def gate() -> Gate:
    return Gate(is_open=True)


@pytest.fixture
async def service(gate: Gate) -> AsyncIterator[InferenceService]:
    pool = EnginePool(
        lambda record: FakeEngine(gate=gate), budget_bytes=1000, keep_alive_s=0, contexts=1, queue_rows_max=100
    )
    service = InferenceService(lambda name, version: RECORD, pool)
    yield service
    gate.open()
    await service.close()


async def test_requests_that_share_a_run_are_counted_as_several_requests_and_one_run(
    service: InferenceService, gate: Gate
) -> None:
    await service.load("net")
    gate.shut()
    before = len(gate.runs)
    first = asyncio.create_task(service.infer("net", row(1)))
    await gate.entered(before + 1)
    later = [asyncio.create_task(service.infer("net", row(value))) for value in (2, 3)]
    await eventually(lambda: service.states()[0].waiting == 2)
    gate.open()
    await asyncio.gather(first, *later)

    totals = service.statistics.of(RECORD.ref)

    assert (totals.requests, totals.rows, totals.runs, totals.failures) == (3, 3, 2, 0)
    assert {rows: of_length.runs for rows, of_length in totals.by_rows.items()} == {1: 1, 2: 1}
    assert 0 < totals.queue_ns + totals.compute_ns <= totals.total_ns
    assert totals.last_answer_ms > 0


async def test_a_request_that_the_engine_fails_on_is_counted_as_a_failure_only(service: InferenceService) -> None:
    with pytest.raises(ExecutionFailed):
        await service.infer("net", row(-1))

    totals = service.statistics.of(RECORD.ref)

    assert (totals.requests, totals.runs, totals.failures) == (0, 0, 1)
    assert totals.failed_ns > 0 and totals.total_ns == 0


async def test_counts_outlive_an_unload_and_end_with_the_engine(service: InferenceService) -> None:
    await service.infer("net", row(1))
    await service.unload("net")
    await service.infer("net", row(1))
    assert service.statistics.of(RECORD.ref).requests == 2

    await service.drop(RECORD)

    assert service.statistics.of(RECORD.ref).requests == 0


async def test_what_a_protocol_spends_on_coding_is_part_of_the_whole(service: InferenceService) -> None:
    await service.infer("net", row(1))
    before_ns = service.statistics.of(RECORD.ref).total_ns

    service.statistics.add_coding(RECORD.ref, input_ns=30, output_ns=12)

    totals = service.statistics.of(RECORD.ref)
    assert (totals.input_ns, totals.output_ns, totals.total_ns) == (30, 12, before_ns + 42)


async def test_an_engine_is_withdrawn_from_its_unload_until_it_is_used_or_loaded(service: InferenceService) -> None:
    await service.load("net")
    assert not service.is_withdrawn(RECORD)

    for bring_back in (lambda: service.load("net"), lambda: service.infer("net", row(1))):
        await service.unload("net")
        assert service.is_withdrawn(RECORD)
        await bring_back()
        assert not service.is_withdrawn(RECORD)


def test_totals_of_two_processes_are_as_those_of_one_that_answered_all() -> None:
    runs = [Run({}, 1.5 * number, 0.7 * number, 1 + number % 3, number % 2 == 0) for number in range(1, 20)]
    one, parts = Statistics(), (Statistics(), Statistics())
    for number, run in enumerate(runs):
        for statistics in (one, parts[number % 2]):
            statistics.add_answer("net:1", (run,), 2, 0.001 * number, 0.0005 * (number % 4))
            statistics.add_coding("net:1", input_ns=1000 * number, output_ns=500)
            statistics.add_failure("net:1", 0.25)

    merged = Statistics()
    for part in parts:
        merged.merge(part.taken())

    assert all(part.known() == [] for part in parts)
    found, wanted = merged.of("net:1"), one.of("net:1")
    for name in ("requests", "rows", "runs", "failures", "total_ns", "failed_ns", "queue_ns", "input_ns", "compute_ns"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert (found.output_ns, found.by_rows) == (wanted.output_ns, wanted.by_rows)
    assert found.last_answer_ms == pytest.approx(wanted.last_answer_ms, abs=1000)
    spreads = [(found.seconds, wanted.seconds), (found.run_rows, wanted.run_rows)]
    spreads += [(found.stage_seconds[stage], wanted.stage_seconds[stage]) for stage in STAGES]
    for mine, other in spreads:
        assert (mine.cumulative(), mine.total) == (other.cumulative(), pytest.approx(other.total))
