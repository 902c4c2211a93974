"""An image of an engine on processors: decoded by the thread that runs the engine, and answered as on the long way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import wiring
from app.api.exchange import BODY
from app.api.fast_path import FastPath
from app.api.heads import Plan, parsed
from app.api.observed import RequestCounts
from app.api.responses import header_lines
from app.api.services import Services
from app.api.shortcut import planned
from app.domain.preprocess import Color, Preprocess
from app.domain.tensors import DType, Signature, Tensors, TensorSpec
from app.serving import images
from app.serving.pool import EnginePool
from app.serving.service import InferenceService
from app.settings import Settings
from tests.fakes import FakeEngine, engine_record, eventually, soon
from tests.samples import encoded

LONG_RUN_S = 0.002  # far more than a run that stays on the event loop
RECIPE = Preprocess("x", 2, 2, color=Color.GRAY, scale=1.0)
SIGNATURE = Signature(
    (TensorSpec("x", DType.FLOAT32, (1, 1, 2, 2)),), (TensorSpec("y", DType.FLOAT32, (1, 1, 2, 2)),), {}, rows_max=1
)
PICTURE = encoded(np.array([[0, 50], [100, 200]], np.uint8), ".png")
DOUBLED = [[[[0.0, 100.0], [200.0, 400.0]]]]


class Asker:
    """Asks the engine `net` with one image."""

    def __init__(self, services: Services) -> None:
        self.services = services

    async def fast(self, image: bytes, *headers: str) -> tuple[int, dict[str, str], bytes] | None:
        """Status, headers and body of the fast path; None: it is left to the long way."""
        told: list[tuple[int, bytes, bytes]] = []
        begin = self._plan(image, *headers).begin
        assert begin is not None

        def reply(status: int, lines: bytes, parts: Sequence[bytes | memoryview]) -> None:
            told.append((status, lines, b"".join(parts)))

        if begin(memoryview(image), "192.0.2.7", reply) is None:
            return None
        await eventually(lambda: bool(told))
        ((status, lines, body),) = told
        fields = _fields(lines)
        del fields["x-request-id"]  # a middleware's, on the long way
        return status, fields, body

    async def long(self, image: bytes, *headers: str) -> tuple[int, dict[str, str], bytes]:
        async def received() -> memoryview:
            return memoryview(image)

        response = await soon(self._plan(image, *headers).answer({BODY: received, "path": "/infer/net"}))
        return response.status_code, _fields(header_lines(response.raw_headers)), bytes(response.body)

    def _plan(self, image: bytes, *headers: str) -> Plan:
        lines = ["POST /infer/net HTTP/1.1", "Host: 127.0.0.1", "Content-Type: image/png"]
        head = parsed("\r\n".join([*lines, f"Content-Length: {len(image)}", *headers, "", ""]).encode())
        assert head is not None
        plan = planned(self.services, FastPath(self.services.inference, self.services.door, RequestCounts()), head)
        assert plan is not None
        return plan


def _fields(lines: bytes) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition(": ") for line in lines.decode().splitlines())}


def slowly_doubled(inputs: Tensors) -> Tensors:
    time.sleep(LONG_RUN_S)
    return {"y": inputs["x"] * 2}


@asynccontextmanager
async def an_asker(folder: Path, *, is_on_cpu: bool = True, recipe: Preprocess | None = RECIPE) -> AsyncIterator[Asker]:
    """The engine is warm."""
    settings = Settings(data_dir=folder / "data", address_requests_per_s=0)
    wiring.prepare(settings)
    engine = FakeEngine(answer=slowly_doubled)
    engine.signature, engine.is_on_cpu = SIGNATURE, is_on_cpu
    pool = EnginePool(lambda _: engine, budget_bytes=1000, keep_alive_s=0, contexts=1, queue_rows_max=8)
    record = engine_record("net", signature=SIGNATURE, preprocess=recipe)
    inference = InferenceService(lambda *_: record, pool, found_for_s=1e9)
    await soon(inference.load("net"))
    with wiring.connected_services(settings) as services:
        yield Asker(replace(services, inference=inference))
    await soon(inference.close())


async def test_an_image_is_answered_as_on_the_long_way(tmp_path: Path) -> None:
    async with an_asker(tmp_path) as asker:
        fast, long = await asker.fast(PICTURE), await asker.long(PICTURE)
        raw = await asker.fast(PICTURE, "Accept: application/octet-stream")

    assert fast is not None and raw is not None
    assert (fast[0], fast[1]["content-type"], list(fast[1])) == (200, "application/json", list(long[1]))
    told, expected = json.loads(fast[2]), json.loads(long[2])
    assert told["outputs"]["y"] == expected["outputs"]["y"]
    assert told["outputs"]["y"]["data"] == DOUBLED
    assert list(told["timings_ms"]) == list(expected["timings_ms"])
    assert (raw[0], raw[2]) == (200, np.array(DOUBLED, np.float32).tobytes())


async def test_the_thread_that_runs_the_engine_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def noted(image: memoryview, recipe: Preprocess) -> Any:
        threads.append(threading.current_thread().name)
        return np.zeros((1, 2, 2), np.float32)

    monkeypatch.setattr(images, "row_from_image", noted)
    async with an_asker(tmp_path) as asker:
        await asker.fast(PICTURE)
        await asker.long(PICTURE)

    fast, long = threads
    assert fast.startswith("engine-context") and long.startswith("infer-worker")


async def test_its_times_are_in_the_statistics(tmp_path: Path) -> None:
    async with an_asker(tmp_path) as asker:
        answer = await asker.fast(PICTURE)
        told = asker.services.inference.statistics.of("net:1")

    assert answer is not None
    times = json.loads(answer[2])["timings_ms"]
    assert times["preprocess"] > 0 and times["compute"] >= LONG_RUN_S * 1e3
    assert times["total"] >= times["preprocess"] + times["queue"] + times["compute"]
    assert {stage: of.count for stage, of in told.stage_seconds.items()} == dict.fromkeys(told.stage_seconds, 1)
    assert (told.requests, told.rows, told.runs, told.failures) == (1, 1, 1, 0)


@pytest.mark.parametrize("image", [b"no image", PICTURE[:40]])
async def test_what_is_no_image_is_refused_as_on_the_long_way_and_harms_nobody(tmp_path: Path, image: bytes) -> None:
    async with an_asker(tmp_path) as asker:
        fast, long = await asker.fast(image), await asker.long(image)
        after = await asker.fast(PICTURE)
        told = asker.services.inference.statistics.of("net:1")

    assert fast is not None and after is not None
    assert fast[0] == long[0] == 422
    assert [json.loads(one[2])["detail"] for one in (fast, long)] == [json.loads(long[2])["detail"]] * 2
    assert after[0] == 200
    assert (told.requests, told.failures) == (1, 0)


async def test_an_engine_without_a_recipe_says_so_as_on_the_long_way(tmp_path: Path) -> None:
    async with an_asker(tmp_path, recipe=None) as asker:
        fast, long = await asker.fast(PICTURE), await asker.long(PICTURE)

    assert fast is not None
    assert (fast[0], json.loads(fast[2])["code"]) == (long[0], json.loads(long[2])["code"])
    assert json.loads(long[2])["code"] == "recipe_missing"


async def test_images_of_an_engine_on_a_device_of_its_own_are_decoded_beside_its_runs(tmp_path: Path) -> None:
    async with an_asker(tmp_path, is_on_cpu=False) as asker:
        assert await asker.fast(PICTURE) is None
        assert (await asker.long(PICTURE))[0] == 200


@pytest.mark.parametrize("header", ["X-Timeout-Ms: 60000", "X-Server-Timing: 1", "Accept: application/x-npz"])
async def test_an_answer_with_more_to_it_takes_the_long_way(tmp_path: Path, header: str) -> None:
    async with an_asker(tmp_path) as asker:
        assert await asker.fast(PICTURE, header) is None
        assert (await asker.long(PICTURE, header))[0] == 200
