"""Seat: an engine's place in the pool; WarmState: what the outside may know of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum

from app.domain.builds import Digest, EngineRecord
from app.serving.warm import WarmEngine


class EngineState(str, Enum):
    LOADING = "loading"  # waits for its load, loads or warms up
    READY = "ready"
    DRAINING = "draining"  # answers what it has accepted, then leaves


@dataclass(frozen=True)
class WarmState:
    """One warm engine, as seen now."""

    blob: Digest  # the engine file
    refs: tuple[str, ...]  # "name:version" under which it was used, sorted
    state: EngineState
    pins: tuple[str, ...]  # those of `refs` by which it is pinned, sorted: it stays until each of them is unloaded
    keep_alive_s: float  # unused for so long, it leaves; 0: when its room is needed
    eviction_position: int | None  # 1 leaves first when room is needed; None: it is loading, in use, pinned or leaving
    device_bytes: int  # an estimate while it loads
    contexts: int
    leases: int  # requests that use it or wait for it
    waiting: int  # rows
    requests: int  # answered since it was loaded
    rows: int  # answered since it was loaded
    runs: int  # since it was loaded; a run answers one request or several
    load_s: float  # warm-up included; 0 while it loads
    loaded_s_ago: float  # 0 while it loads
    last_used_s_ago: float
    loaded_at: datetime | None  # None while it loads
    last_used_at: datetime

    @property
    def is_pinned(self) -> bool:
        return bool(self.pins)


@dataclass(eq=False)
class Seat:
    """One engine file in the pool, from the first request for it until its memory is free."""

    record: EngineRecord  # the first that asked for the file
    keep_alive_s: float  # as in WarmState
    last_used_s: float  # by the pool's clock
    refs: set[str] = field(default_factory=set)
    pins: set[str] = field(default_factory=set)
    loading: asyncio.Task[WarmEngine] = field(init=False)
    warm: WarmEngine | None = None  # None until it is ready
    left: asyncio.Task[None] | None = None  # ends when its memory is free; None while it is in use
    leases: int = 0
    copies_bytes: int = 0  # of memory, in other processes
    load_s: float = 0
    loaded_s: float = 0  # by the pool's clock
    last_used_unix_s: float = field(default_factory=time.time)  # for people
    loaded_at: datetime | None = None

    def touch(self, now_s: float) -> None:
        """It was used now."""
        self.last_used_s = now_s
        self.last_used_unix_s = time.time()

    @property
    def last_used_at(self) -> datetime:
        return datetime.fromtimestamp(self.last_used_unix_s, timezone.utc)

    @property
    def is_idle(self) -> bool:
        """Whether it can be evicted."""
        return self.warm is not None and self.leases == 0 and not self.pins

    def is_unused(self, now_s: float) -> bool:
        """Whether its keep-alive time is over."""
        return self.is_idle and 0 < self.keep_alive_s <= now_s - self.last_used_s

    def described(self, now_s: float, estimate_bytes: int, eviction_position: int | None) -> WarmState:
        warm = self.warm
        return WarmState(
            blob=self.record.blob,
            refs=tuple(sorted(self.refs)),
            state=self._state(),
            pins=tuple(sorted(self.pins)),
            keep_alive_s=self.keep_alive_s,
            eviction_position=eviction_position,
            device_bytes=warm.device_bytes + self.copies_bytes if warm else estimate_bytes,
            contexts=warm.contexts if warm else 0,
            leases=self.leases,
            waiting=warm.waiting_rows if warm else 0,
            requests=warm.requests if warm else 0,
            rows=warm.rows if warm else 0,
            runs=warm.runs if warm else 0,
            load_s=self.load_s,
            loaded_s_ago=now_s - self.loaded_s if warm else 0,
            last_used_s_ago=now_s - self.last_used_s,
            loaded_at=self.loaded_at if warm else None,
            last_used_at=self.last_used_at,
        )

    def _state(self) -> EngineState:
        if self.left:
            return EngineState.DRAINING
        return EngineState.READY if self.warm else EngineState.LOADING


def eviction_order(seats: Iterable[Seat]) -> list[Seat]:
    """The seats that may be evicted, the next to leave first: the least recently used."""
    return sorted((seat for seat in seats if seat.is_idle), key=lambda seat: seat.last_used_s)
