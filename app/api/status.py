"""GET /status: one small document about this device, for dashboards of many."""

from __future__ import annotations

import asyncio
import platform
import secrets
import socket
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from app import __version__
from app.api.responses import json_bytes, matches, not_modified
from app.api.services import Services
from app.api.vitals import Alarm, Sample, Vitals
from app.backends.board import board_model, jetpack_of, l4t_release
from app.domain.jobs import Job, JobState
from app.serving.seats import WarmState
from app.storage.watch import RevisionWatch

router = APIRouter(tags=["device"])

LAST_JOBS = 5
ENGINES = 50  # the newest; GET /engines lists all


class DeviceSchema(BaseModel):
    name: str
    board: str | None
    machine: str
    versions: dict[str, str | None]  # jetforge, python, onnxruntime, tensorrt, l4t, jetpack; null: not there


class StatusJob(BaseModel):
    id: str
    name: str
    state: JobState
    stage: str | None
    engine: str | None
    failure: str | None  # its code
    created_at: datetime
    finished_at: datetime | None


class StatusEngine(BaseModel):
    ref: str
    precision: str
    state: str  # cold, loading, ready, draining


class StatusSchema(BaseModel):
    device: DeviceSchema
    started_at: datetime
    health: str  # ok, or alarm
    alarms: list[Alarm]
    workers: int
    jobs: dict[JobState, int]
    last_jobs: list[StatusJob]
    engines: list[StatusEngine]
    engines_used_mib: int
    engines_budget_mib: int
    memory_total_mib: int
    memory_available_mib: int
    disk_total_mib: int
    disk_free_mib: int
    temperature_c: int | None


@router.get("/status", response_model=StatusSchema, responses={304: {"description": "Nothing has changed."}})
async def get_status(request: Request) -> Response:
    """Name, versions, health, jobs by state, the last jobs, engines, memory, disk and temperature.

    Made to be polled: with the ETag in `If-None-Match` the answer is 304 until something changes. Memory, disk and
    temperature change in steps (5 % and 1 % of the whole, 5 °C).
    """
    document: StatusDocument = request.app.state.status
    etag = await document.tag()
    if matches(request, etag):
        return not_modified(etag)
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    return Response(await document.body(etag), media_type="application/json", headers=headers)


class StatusDocument:
    """The document and its tag. The tag follows from counters, the body is built once for each tag."""

    def __init__(self, wired: Services, watch: RevisionWatch) -> None:
        settings = wired.settings
        self.vitals = Vitals(settings.root, settings.min_free_mib, wired.workers_alive)
        self._wired = wired
        self._watch = watch
        self._start = secrets.token_hex(4)  # the other counters begin anew with each process
        self._started_at = datetime.now(timezone.utc)
        self._built: tuple[str, bytes] = ("", b"")
        self._one_build = asyncio.Lock()

    def known_tag(self) -> str | None:
        """The tag, if it can be told without a look at anything; else `tag` finds it out."""
        revision = self._watch.known()
        if revision is None or not self.vitals.is_fresh:
            return None
        return self._tag(revision)

    async def tag(self) -> str:
        await self.vitals.sample()
        return self._tag(await read_revision(self._wired, self._watch))

    def _tag(self, revision: int) -> str:
        return f'"s{self._start}-{revision}-{self._wired.inference.events.revision}-{self.vitals.revision}"'

    async def body(self, tag: str) -> bytes:
        """The document; not older than the tag."""
        async with self._one_build:
            if self._built[0] != tag:
                sample, states = await self.vitals.sample(), self._wired.inference.states()
                self._built = tag, await run_in_threadpool(self._written, sample, states)
            return self._built[1]

    def _written(self, sample: Sample, states: list[WarmState]) -> bytes:
        wired = self._wired
        schema = StatusSchema(
            device=_device(wired.settings.device_name),
            started_at=self._started_at,
            health="alarm" if sample.alarms else "ok",
            jobs=wired.queue.counts(),
            last_jobs=[_job(job) for job in wired.queue.list(limit=LAST_JOBS)],
            engines=_engines(wired, states),
            engines_used_mib=sum(state.device_bytes for state in states if state.loaded_at) >> 20,
            engines_budget_mib=wired.inference.budget_bytes >> 20,
            **vars(sample),
        )
        return json_bytes(schema)


async def read_revision(wired: Services, watch: RevisionWatch) -> int:
    """The revision, read from the database unless nothing was committed since."""
    known = watch.known()
    if known is not None:
        return known
    count = watch.count()
    revision = await run_in_threadpool(wired.queue.revision)
    watch.learn(count, revision)
    return revision


@cache
def _device(name: str) -> DeviceSchema:
    l4t = l4t_release()
    versions = {"jetforge": __version__, "python": platform.python_version()}
    runtimes = {runtime: _installed(runtime) for runtime in ("onnxruntime", "tensorrt")}
    return DeviceSchema(
        name=name or socket.gethostname(),
        board=board_model(),
        machine=platform.machine(),
        versions=versions | runtimes | {"l4t": l4t, "jetpack": jetpack_of(l4t)},
    )


def _installed(package: str) -> str | None:
    """Its version, without an import: a server that only builds need not have the runtime in memory."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _job(job: Job) -> StatusJob:
    known: dict[str, Any] = {name: getattr(job, name) for name in ("id", "name", "state", "engine", "created_at")}
    return StatusJob(
        **known,
        stage=job.stage.value if job.stage else None,
        failure=job.failure.code if job.failure else None,
        finished_at=job.finished_at,
    )


def _engines(wired: Services, states: list[WarmState]) -> list[StatusEngine]:
    warm = {state.blob: state.state.value for state in states}
    return [
        StatusEngine(ref=engine.ref, precision=engine.built.precision.value, state=warm.get(engine.blob, "cold"))
        for engine in wired.catalogue.engines(limit=ENGINES)
    ]
