"""Vitals: disk, memory, temperature and workers, looked at now and then, and told in steps.

A dashboard that polls a device should be told when it has become hot or full, not that a figure has trembled: a figure
stays what it was until it has moved by a whole step.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from app.backends.board import temperatures_c
from app.backends.memory import memory_bytes

SAMPLE_S = 5.0  # a sample that is older than this is taken anew before it is shown
MEMORY_STEPS, DISK_STEPS = 20, 100  # of the whole
TEMPERATURE_STEP_C = 5
MEMORY_LOW = 0.05  # of the whole: then the system may soon have to kill something


@dataclass(frozen=True)
class Alarm:
    code: str  # no_worker, disk_low, memory_low
    detail: str


@dataclass(frozen=True)
class Sample:
    """The device as it is told: figures in steps, alarms by exact figures."""

    workers: int
    memory_total_mib: int
    memory_available_mib: int
    disk_total_mib: int
    disk_free_mib: int
    temperature_c: int | None  # of the hottest zone; None: no zone can be read
    alarms: tuple[Alarm, ...] = field(default=())


class Vitals:
    """Used on the event loop; it reads files on a thread, once for all who ask at that time."""

    def __init__(
        self,
        data_dir: Path,
        min_free_mib: int,
        workers_alive: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.revision = 0  # grows when what is told has changed
        self._data_dir = data_dir
        self._min_free_mib = min_free_mib
        self._workers_alive = workers_alive
        self._clock = clock
        self._sample: Sample | None = None
        self._sampled_s = float("-inf")
        self._sampling: asyncio.Task[None] | None = None

    @property
    def is_fresh(self) -> bool:
        return self._clock() - self._sampled_s < SAMPLE_S

    async def sample(self) -> Sample:
        """The sample of the last seconds."""
        if not self.is_fresh:
            if self._sampling is None:
                self._sampling = asyncio.create_task(self._taken())
            await asyncio.shield(self._sampling)
        assert self._sample is not None
        return self._sample

    async def _taken(self) -> None:
        try:
            now = await run_in_threadpool(self._looked)
        finally:
            self._sampling = None
        told = settled(self._sample, now)
        if told != self._sample:
            self.revision += 1
        self._sample, self._sampled_s = told, self._clock()

    def _looked(self) -> Sample:
        disk, memory, zones = shutil.disk_usage(self._data_dir), memory_bytes(), temperatures_c()
        now = Sample(
            workers=self._workers_alive(),
            memory_total_mib=memory["MemTotal"] >> 20,
            memory_available_mib=memory["MemAvailable"] >> 20,
            disk_total_mib=disk.total >> 20,
            disk_free_mib=disk.free >> 20,
            temperature_c=round(max(zones.values())) if zones else None,
        )
        return replace(now, alarms=alarms(now, self._min_free_mib))


def settled(told: Sample | None, now: Sample) -> Sample:
    """The new sample with its figures in steps, and as they were told before where they have moved by less."""
    return replace(
        now,
        memory_available_mib=_settled(told, now, "memory_available_mib", now.memory_total_mib // MEMORY_STEPS),
        disk_free_mib=_settled(told, now, "disk_free_mib", now.disk_total_mib // DISK_STEPS),
        temperature_c=None if now.temperature_c is None else _settled(told, now, "temperature_c", TEMPERATURE_STEP_C),
    )


def alarms(now: Sample, min_free_mib: int) -> tuple[Alarm, ...]:
    """What a person should look at. The details name no figure that changes from one look to the next."""
    found = []
    if not now.workers:
        found.append(Alarm("no_worker", "No build worker is alive; start one with: jetforge work"))
    if now.disk_free_mib < min_free_mib:
        found.append(
            Alarm("disk_low", f"Less than {min_free_mib} MiB of disk are free: uploads and builds are refused.")
        )
    if now.memory_available_mib < now.memory_total_mib * MEMORY_LOW:
        found.append(Alarm("memory_low", f"Less than {MEMORY_LOW:.0%} of the memory is available."))
    return tuple(found)


def _settled(told: Sample | None, now: Sample, name: str, step: int) -> int:
    earlier: int | None = getattr(told, name, None)
    found: int = getattr(now, name)
    if earlier is not None and abs(found - earlier) < step:
        return earlier
    return round(found / step) * step if step else found
