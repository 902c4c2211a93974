"""EnginePool: which engines are warm. Leases, one load at a time, budget, eviction, keep-alive, pins."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from app.backends.base import LoadedEngine
from app.domain.builds import Digest, EngineRecord
from app.domain.errors import EngineTooLarge, EngineUnloadable, InUse
from app.serving.opening import opened
from app.serving.pool_events import PoolEvents
from app.serving.refusals import stopping
from app.serving.seating import Seating
from app.serving.seats import EngineState, Seat, WarmState
from app.serving.warm import WarmEngine

__all__ = ["EnginePool", "EngineState", "WarmState"]

SWEEP_S_MAX = 10  # between looks for unused engines


class EnginePool:
    """Keeps engines loaded between requests, within a memory budget.

    Engines are known by the digest of their file: two names of one file share one warm engine. A leased engine is
    never evicted; an idle one leaves, the least recently used first, when another needs its room, or when nobody
    has used it for `keep_alive_s`, of which a load may set another for its engine. A pinned one leaves only when it
    is unloaded by every name by which it was pinned.
    """

    def __init__(
        self,
        load: Callable[[EngineRecord], LoadedEngine],
        *,
        budget_bytes: int,
        keep_alive_s: float,
        contexts: int,
        queue_rows_max: int,
        free_bytes: Callable[[str], int] = lambda backend: sys.maxsize,
        clock: Callable[[], float] = time.monotonic,
        room_wait_s: float = 5,
        drain_s: float = 30,
    ) -> None:
        """
        Args:
            load: loads an engine's file; may block, runs on a thread of the pool.
            keep_alive_s: 0 = unused engines stay until their room is needed.
            contexts: of each engine; 0: as many as make the most of its device.
            queue_rows_max: rows that may wait for one engine.
            free_bytes: memory that the backend of that name could still take; may block, runs on a thread of the
                pool.
            clock: seconds; decides what is unused and for how long.
            room_wait_s: how long a load waits for leased engines to be given back.
            drain_s: how long `unload` waits for leases to end.
        """
        self.events = PoolEvents()
        self._load_file = load
        self.keep_alive_s = keep_alive_s
        self._contexts = contexts
        self._queue_rows_max = queue_rows_max
        self._clock = clock
        self._drain_s = drain_s
        self._measured: dict[Digest, int] = {}  # device_bytes of earlier loads
        self._one_load = asyncio.Lock()
        self._keeper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-keeper")
        self.seating = Seating(
            self.events,
            budget_bytes=budget_bytes,
            free_bytes=free_bytes,
            keeper=self._keeper,
            room_wait_s=room_wait_s,
        )
        self._sweeper: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def lease(self, record: EngineRecord) -> AsyncIterator[WarmEngine]:
        """The warm engine, loaded first if need be; it stays for as long as the block lasts.

        Raises:
            EngineTooLarge: the budget has no room for it.
            EngineUnloadable, EngineStale: it cannot be loaded.
            ShuttingDown: the pool is closed.
        """
        seat = self._seat(record)
        seat.leases += 1
        try:
            # Shielded: the load goes on for the others when this one is cancelled.
            yield await asyncio.shield(seat.loading) if seat.warm is None else seat.warm
        finally:
            self.give_back(seat)

    def is_warm(self, record: EngineRecord) -> bool:
        """Whether a lease would wait for nothing."""
        seat = self.seating.of(record.blob)
        return seat is not None and seat.warm is not None and not self.seating.is_closed

    def warm(self, record: EngineRecord) -> WarmEngine:
        """An engine that `is_warm`."""
        seat = self.seating.of(record.blob)
        assert seat is not None and seat.warm is not None
        return seat.warm

    def taken(self, record: EngineRecord) -> Seat:
        """A lease on an engine that `is_warm`, until `give_back`."""
        seat = self.seating.of(record.blob)
        assert seat is not None
        seat.refs.add(record.ref)
        seat.leases += 1
        return seat

    def short(self, record: EngineRecord) -> Seat | None:
        """The engine's seat if it is warm, and its runs are so short that they stay on the event loop."""
        seat = self.seating.of(record.blob)
        return seat if seat is not None and seat.warm is not None and seat.warm.is_short else None

    def used_elsewhere(self, blob: Digest, requests: int, rows: int, runs: int) -> None:
        """A copy in another process has answered so much."""
        seat = self.seating.of(blob)
        if seat is not None and seat.warm is not None:
            seat.warm.count(requests, rows, runs)
            seat.touch(self._clock())

    def copied(self, blob: Digest, more_bytes: int) -> bool:
        """Another process has a copy that takes so much memory, or has one no more; False: nobody wants it."""
        for holder in self.seating.holders(blob):
            holder.copies_bytes = max(0, holder.copies_bytes + more_bytes)
        return self.seating.of(blob) is not None

    def give_back(self, seat: Seat) -> None:
        """End a lease."""
        seat.leases -= 1
        seat.touch(self._clock())
        if seat.leases == 0:
            self.seating.tell_change()

    async def load(
        self, record: EngineRecord, *, pin: bool | None = None, keep_alive_s: float | None = None
    ) -> WarmState:
        """Have the engine warm before its first request; raises as `lease` does.

        Args:
            pin: whether it stays until `unload`; None: as it was.
            keep_alive_s: this engine's own, until it leaves; 0: until its room is needed; None: as it was.
        """
        seat = self._seat(record)
        async with self.lease(record):  # of this seat: nothing is awaited in between
            if pin is not None:
                (seat.pins.add if pin else seat.pins.discard)(record.ref)
            if keep_alive_s is not None:
                seat.keep_alive_s = keep_alive_s
                self._sweep_anew()
        return self._described([seat])[0]

    def unpin(self, ref: str) -> None:
        """Let the engine of that `name:version` leave as others do, unless it is pinned by another name."""
        for seat in self.seating.seats:
            seat.pins.discard(ref)

    async def unload(self, record: EngineRecord, *, is_gone: bool = False) -> bool:
        """Give the engine's memory back once its leases have ended; new leases load it anew, afterwards.

        An engine that is pinned by another name of its file is no longer warm by this one, and stays.

        Args:
            is_gone: no name of the file is left, whatever pinned it.

        Returns:
            Whether it was warm.

        Raises:
            InUse: leases outlast `drain_s`; it leaves when they end.
        """
        if seat := self.seating.of(record.blob):
            seat.pins.discard(record.ref)
            if seat.pins and not is_gone:
                seat.refs.discard(record.ref)
                return True
            self.seating.retire(seat)
        leaving = self.seating.leaving_of(record)
        if leaving and (await asyncio.wait(leaving, timeout=self._drain_s))[1]:
            raise InUse(
                f"Requests still use {record.ref} after {self._drain_s:g} s.",
                hint="It leaves by itself when they end; no new request reaches it.",
            )
        return bool(leaving)

    async def unload_unused(self) -> None:
        """Unload what nobody has used for its keep-alive time; also done in the background."""
        now_s = self._clock()
        unused = [seat for seat in self.seating.seats if seat.is_unused(now_s)]
        if unused:
            await asyncio.wait({self.seating.retire(seat, is_evicted=True) for seat in unused})

    def states(self) -> list[WarmState]:
        """Every engine that is loading, ready or draining."""
        return self._described([*self.seating.seats, *self.seating.leaving])

    def estimate_bytes(self, record: EngineRecord) -> int:
        """What the engine takes: as measured when it was last loaded or built, else the size of its file."""
        return self._measured.get(record.blob, record.built.device_bytes or record.built.size_bytes)

    async def close(self) -> None:
        """Refuse new leases and what waits, let what runs end, and close every engine."""
        self.seating.is_closed = True
        if self._sweeper:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
        await self.seating.close()
        self._keeper.shutdown(wait=True)

    def _seat(self, record: EngineRecord) -> Seat:
        """The engine's seat; a new one begins to load."""
        if self.seating.is_closed:
            raise stopping()
        seat = self.seating.of(record.blob)
        if seat is None:
            seat = Seat(record, self.keep_alive_s, last_used_s=self._clock())
            self.seating.add(seat)
            self.events.loading(record)
            seat.loading = asyncio.create_task(self._load(seat))
            seat.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # its waiters may be gone
            if self._sweeper is None and self.keep_alive_s > 0:
                self._sweep_anew()
        seat.refs.add(record.ref)
        return seat

    async def _load(self, seat: Seat) -> WarmEngine:
        try:
            if earlier := self.seating.leaving_of(seat.record):
                await asyncio.wait(earlier, timeout=self._drain_s)
            async with self._one_load:
                if self.seating.is_closed:
                    raise stopping()
                started_s = time.perf_counter()
                seat.warm = await self._loaded(seat.record)
        except BaseException:
            self.seating.remove(seat)
            self.events.load_failed(seat.record)
            raise
        seat.load_s = time.perf_counter() - started_s
        seat.loaded_s = self._clock()
        seat.touch(seat.loaded_s)
        seat.loaded_at = seat.last_used_at
        self.events.loaded(seat.record, seat.load_s)
        return seat.warm

    async def _loaded(self, record: EngineRecord) -> WarmEngine:
        await self.seating.make_room(self.estimate_bytes(record), record)
        await self.seating.make_free(self.estimate_bytes(record), record)
        try:
            warm = await self._opened(record)
        except (EngineTooLarge, EngineUnloadable):  # perhaps for want of memory
            if not await self.seating.evict_idle():
                raise
            warm = await self._opened(record)
        self._measured[record.blob] = warm.device_bytes
        try:
            await self.seating.make_room(warm.device_bytes, record)  # it may be larger than its estimate
        except BaseException:
            await warm.close()
            raise
        return warm

    async def _opened(self, record: EngineRecord) -> WarmEngine:
        limits = {"contexts": self._contexts, "queue_rows_max": self._queue_rows_max}
        return await opened(record, self._load_file, keeper=self._keeper, **limits)

    def _described(self, seats: Sequence[Seat]) -> list[WarmState]:
        now_s = self._clock()
        places = {seat: place for place, seat in enumerate(self.seating.eviction_order(), 1)}
        return [seat.described(now_s, self.estimate_bytes(seat.record), places.get(seat)) for seat in seats]

    def _sweep_anew(self) -> None:
        """Look for unused engines as often as the shortest keep-alive time asks for."""
        if self._sweeper:
            self._sweeper.cancel()
        keep_alive_s = [seat.keep_alive_s for seat in self.seating.seats if seat.keep_alive_s > 0]
        self._sweeper = asyncio.create_task(self._sweep(min([*keep_alive_s, 4 * SWEEP_S_MAX]) / 4))

    async def _sweep(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self.unload_unused()
