"""PoolEvents: what the pool of warm engines has done, counted, logged and told to who listens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass

from app.domain.builds import EngineRecord
from app.serving.distribution import Distribution

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoolEvent:
    """An engine changed its place: it is loading, loaded, load_failed, draining or unloaded."""

    action: str
    engine: str  # name:version
    seconds: float | None = None  # of a load


class PoolEvents:
    """Used on the event loop only."""

    def __init__(self) -> None:
        self.revision = 0  # grows with every event
        self.load_seconds = Distribution()
        self.load_failures = 0
        self.unloads = 0  # evictions included
        self.evictions = 0  # for the room, or for want of use
        self.listeners: list[Callable[[PoolEvent], None]] = []  # called at once; they must not block

    def loading(self, record: EngineRecord) -> None:
        self._tell(PoolEvent("loading", record.ref))

    def loaded(self, record: EngineRecord, seconds: float) -> None:
        self.load_seconds.add(seconds)
        log.info("engine loaded", extra={"engine": record.ref, "seconds": round(seconds, 3)})
        self._tell(PoolEvent("loaded", record.ref, round(seconds, 3)))

    def load_failed(self, record: EngineRecord) -> None:
        self.load_failures += 1
        self._tell(PoolEvent("load_failed", record.ref))

    def draining(self, record: EngineRecord, *, is_evicted: bool) -> None:
        self.evictions += is_evicted
        self._tell(PoolEvent("draining", record.ref))

    def unloaded(self, record: EngineRecord) -> None:
        self.unloads += 1
        # Outside of the context: its task may stem from a request that ended long ago, whose id would be in the line.
        Context().run(log.info, "engine unloaded", extra={"engine": record.ref})
        self._tell(PoolEvent("unloaded", record.ref))

    def _tell(self, event: PoolEvent) -> None:
        self.revision += 1
        for listener in self.listeners:
            listener(event)
