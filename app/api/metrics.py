"""GET /metrics: the service and its device for Prometheus."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from starlette.concurrency import run_in_threadpool

from app.api.build_counts import BuildCounts
from app.api.feed import Feed
from app.api.metric_families import Measured, by_engine, families
from app.api.observed import RequestCounts
from app.api.services import Services, Wired
from app.api.triton_metrics import triton_page
from app.backends.board import temperatures_c
from app.backends.memory import memory_bytes
from app.device import gpu_readings
from app.serving.seats import WarmState

router = APIRouter(tags=["device"])

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ARTEFACTS_S = 60.0  # the artefacts are counted at most this often: it takes a look at every file


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def get_metrics(request: Request, wired: Wired) -> Response:
    """Metrics as Prometheus text; docs/metrics.md describes each, docs/grafana.json is a dashboard of them."""
    page: MetricsPage = request.app.state.metrics
    states = wired.inference.states()  # here, because it belongs to the event loop; all else may be read elsewhere
    return Response(await run_in_threadpool(page.text, states), media_type=MEDIA_TYPE)


class MetricsPage:
    """Gathers everything and writes it down."""

    def __init__(self, wired: Services, requests: RequestCounts, feed: Feed) -> None:
        self._feed = feed
        self._wired = wired
        self._requests = requests
        self._builds = BuildCounts(wired.feed)
        self._artefacts: tuple[float, int] = (float("-inf"), 0)  # when counted, bytes

    def text(self, states: Sequence[WarmState]) -> bytes:
        """The whole page. Blocks for as long as the database, the disk and the GPUs take to answer."""
        inference = self._wired.inference.statistics.known()
        registry = CollectorRegistry()
        registry.register(_Once(self._families(states)))
        ProcessCollector(registry=registry)
        waiting = [(labels[0], rows) for labels, rows in by_engine(states, lambda state: state.waiting)]
        return generate_latest(registry) + triton_page(gpu_readings(), inference, waiting).encode()

    def _families(self, states: Sequence[WarmState]) -> list[Metric]:
        self._builds.catch_up()
        inference = self._wired.inference
        known = inference.statistics.known()
        return list(families(self._measured(states), self._requests, known, inference.events, self._builds))

    def _measured(self, states: Sequence[WarmState]) -> Measured:
        disk, memory = shutil.disk_usage(self._wired.settings.root), memory_bytes()
        return Measured(
            states=states,
            used_bytes=sum(state.device_bytes for state in states if state.loaded_at),
            budget_bytes=self._wired.inference.budget_bytes,
            jobs=self._wired.queue.counts(),
            workers=self._wired.workers_alive(),
            streams=self._feed.streams,
            body_used_bytes=self._wired.bodies.held_bytes,
            body_limit_bytes=self._wired.bodies.limit_bytes,
            disk_total_bytes=disk.total,
            disk_free_bytes=disk.free,
            artefact_bytes=self._artefact_bytes(),
            memory_total_bytes=memory["MemTotal"],
            memory_available_bytes=memory["MemAvailable"],
            temperatures_c=temperatures_c(),
        )

    def _artefact_bytes(self) -> int:
        counted_s, stored_bytes = self._artefacts
        if time.monotonic() - counted_s > ARTEFACTS_S:
            stored_bytes = self._wired.store.stored_bytes()
            self._artefacts = time.monotonic(), stored_bytes
        return stored_bytes


class _Once:
    """Families that were gathered already."""

    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        yield from self._found
