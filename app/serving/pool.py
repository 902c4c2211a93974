"""EnginePool: which engines are warm. Leases, one load at a time, budget, eviction, keep-alive, pins."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from app.backends.base import LoadedEngine
from app.domain.builds import Digest, EngineRecord
from app.domain.errors import EngineTooLarge, EngineUnloadable, InUse
from app.room import Room
from app.serving.opening import opened
from app.serving.pool_events import PoolEvents
from app.serving.refusals import device_full, others_in_use, over_budget, stopping
from app.serving.seats import EngineState, Seat, WarmState, eviction_order
from app.serving.warm import WarmEngine

__all__ = ["EnginePool", "EngineState", "WarmState"]

log = logging.getLogger(__name__)

SWEEP_S_MAX = 10  # between looks for unused engines


class EnginePool:
    """Keeps engines loaded between requests, within a memory budget.

    Engines are known by the digest of their file: two names of one file share one warm engine. A leased engine is
    never evicted; an idle one leaves, the least recently used first, when another needs its room, or when nobody
    has used it for `keep_alive_s`, of which a load may set another for its engine. A pinned one leaves only when it
    is unloaded by name.
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
        self.budget_bytes = budget_bytes
        self.events = PoolEvents()
        self.give_up_copies: Callable[[Digest], Awaitable[None]] | None = None  # of an engine, in other processes
        self._load_file = load
        self.keep_alive_s = keep_alive_s
        self._contexts = contexts
        self._queue_rows_max = queue_rows_max
        self._free_bytes = free_bytes
        self._clock = clock
        self._room_wait_s = room_wait_s
        self._drain_s = drain_s
        self._seats: dict[Digest, Seat] = {}  # loading or ready
        self._leaving: set[Seat] = set()  # their memory is not free yet
        self._measured: dict[Digest, int] = {}  # device_bytes of earlier loads
        self._one_load = asyncio.Lock()
        self._keeper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-keeper")
        self._change: asyncio.Future[None] | None = None  # done when a lease ends or an engine has left
        self._sweeper: asyncio.Task[None] | None = None
        self._is_closed = False

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
        seat = self._seats.get(record.blob)
        return seat is not None and seat.warm is not None and not self._is_closed

    def warm(self, record: EngineRecord) -> WarmEngine:
        """An engine that `is_warm`."""
        warm = self._seats[record.blob].warm
        assert warm is not None
        return warm

    def taken(self, record: EngineRecord) -> Seat:
        """A lease on an engine that `is_warm`, until `give_back`."""
        seat = self._seats[record.blob]
        seat.refs.add(record.ref)
        seat.leases += 1
        return seat

    def short(self, record: EngineRecord) -> Seat | None:
        """The engine's seat if it is warm, and its runs are so short that they stay on the event loop."""
        seat = self._seats.get(record.blob)
        return seat if seat is not None and seat.warm is not None and seat.warm.is_short else None

    def has_room_for(self, needed_bytes: int) -> bool:
        """Whether so much fits into the budget as it is."""
        return self.used_bytes + needed_bytes <= self.budget_bytes

    def used_elsewhere(self, blob: Digest, requests: int, rows: int, runs: int) -> None:
        """A copy in another process has answered so much."""
        seat = self._seats.get(blob)
        if seat is not None and seat.warm is not None:
            seat.warm.count(requests, rows, runs)
            seat.touch(self._clock())

    def copied(self, blob: Digest, more_bytes: int) -> bool:
        """Another process has a copy that takes so much memory, or has one no more; False: nobody wants it."""
        seat = self._seats.get(blob)
        seats = [seat] if seat is not None else [leaving for leaving in self._leaving if leaving.record.blob == blob]
        for holder in seats:
            holder.copies_bytes = max(0, holder.copies_bytes + more_bytes)
        return seat is not None

    def give_back(self, seat: Seat) -> None:
        """End a lease."""
        seat.leases -= 1
        seat.touch(self._clock())
        if seat.leases == 0:
            self._tell_change()

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
            seat.is_pinned = seat.is_pinned if pin is None else pin
            if keep_alive_s is not None:
                seat.keep_alive_s = keep_alive_s
                self._sweep_anew()
        return self._described([seat])[0]

    def unpin(self, ref: str) -> None:
        """Let the engine of that `name:version` leave as others do."""
        for seat in self._seats.values():
            seat.is_pinned = seat.is_pinned and ref not in seat.refs

    async def unload(self, record: EngineRecord) -> bool:
        """Give the engine's memory back once its leases have ended; new leases load it anew, afterwards.

        Returns:
            Whether it was warm.

        Raises:
            InUse: leases outlast `drain_s`; it leaves when they end.
        """
        if seat := self._seats.get(record.blob):
            self._retire(seat)
        leaving = self._leaving_of(record)
        if leaving and (await asyncio.wait(leaving, timeout=self._drain_s))[1]:
            raise InUse(
                f"Requests still use {record.ref} after {self._drain_s:g} s.",
                hint="It leaves by itself when they end; no new request reaches it.",
            )
        return bool(leaving)

    async def free_up(self, needed_bytes: int, backend: str) -> Room:
        """Evict idle engines, the least recently used first, until that backend could take so much.

        Returns:
            What is free now, which may be less, and which engines had to go.
        """
        evicted: list[str] = []
        look = partial(asyncio.get_running_loop().run_in_executor, self._keeper, self._free_bytes, backend)
        while (free := await look()) < needed_bytes:
            idle = eviction_order(self._seats.values())
            if not idle:
                break
            evicted += sorted(idle[0].refs)
            await asyncio.wait({self._retire(idle[0], is_evicted=True)})
        return Room(free, tuple(evicted))

    async def unload_unused(self) -> None:
        """Unload what nobody has used for its keep-alive time; also done in the background."""
        now_s = self._clock()
        unused = [seat for seat in self._seats.values() if seat.is_unused(now_s)]
        if unused:
            await asyncio.wait({self._retire(seat, is_evicted=True) for seat in unused})

    def states(self) -> list[WarmState]:
        """Every engine that is loading, ready or draining."""
        return self._described([*self._seats.values(), *self._leaving])

    def estimate_bytes(self, record: EngineRecord) -> int:
        """What the engine takes: as measured when it was last loaded or built, else the size of its file."""
        return self._measured.get(record.blob, record.built.device_bytes or record.built.size_bytes)

    @property
    def used_bytes(self) -> int:
        """Memory of all engines that are loaded."""
        every = (*self._seats.values(), *self._leaving)
        return sum(seat.warm.device_bytes + seat.copies_bytes for seat in every if seat.warm)

    async def close(self) -> None:
        """Refuse new leases and what waits, let what runs end, and close every engine."""
        self._is_closed = True
        if self._sweeper:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
        for seat in [*self._seats.values()]:
            self._retire(seat)
        self._tell_change()
        if self._leaving:
            await asyncio.wait({seat.left for seat in self._leaving if seat.left})
        self._keeper.shutdown(wait=True)

    def _seat(self, record: EngineRecord) -> Seat:
        """The engine's seat; a new one begins to load."""
        if self._is_closed:
            raise stopping()
        seat = self._seats.get(record.blob)
        if seat is None:
            seat = self._seats[record.blob] = Seat(record, self.keep_alive_s, last_used_s=self._clock())
            self.events.loading(record)
            seat.loading = asyncio.create_task(self._load(seat))
            seat.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # its waiters may be gone
            if self._sweeper is None and self.keep_alive_s > 0:
                self._sweep_anew()
        seat.refs.add(record.ref)
        return seat

    async def _load(self, seat: Seat) -> WarmEngine:
        blob = seat.record.blob
        try:
            if earlier := self._leaving_of(seat.record):
                await asyncio.wait(earlier, timeout=self._drain_s)
            async with self._one_load:
                if self._is_closed:
                    raise stopping()
                started_s = time.perf_counter()
                seat.warm = await self._loaded(seat.record)
        except BaseException:
            if self._seats.get(blob) is seat:
                del self._seats[blob]
            self.events.load_failed(seat.record)
            raise
        seat.load_s = time.perf_counter() - started_s
        seat.loaded_s = self._clock()
        seat.touch(seat.loaded_s)
        seat.loaded_at = seat.last_used_at
        self.events.loaded(seat.record, seat.load_s)
        return seat.warm

    async def _loaded(self, record: EngineRecord) -> WarmEngine:
        await self._make_room(self.estimate_bytes(record), record)
        await self._make_free(self.estimate_bytes(record), record)
        try:
            warm = await self._opened(record)
        except (EngineTooLarge, EngineUnloadable):  # perhaps for want of memory
            if not await self._evict_idle():
                raise
            warm = await self._opened(record)
        self._measured[record.blob] = warm.device_bytes
        try:
            await self._make_room(warm.device_bytes, record)  # it may be larger than its estimate
        except BaseException:
            await warm.close()
            raise
        return warm

    async def _opened(self, record: EngineRecord) -> WarmEngine:
        limits = {"contexts": self._contexts, "queue_rows_max": self._queue_rows_max}
        return await opened(record, self._load_file, keeper=self._keeper, **limits)

    async def _make_room(self, needed_bytes: int, record: EngineRecord) -> None:
        """Evict idle engines until so much fits; wait, within bounds, for leased ones to become idle."""
        if needed_bytes > self.budget_bytes:
            raise over_budget(record, needed_bytes, self.budget_bytes)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._room_wait_s
        while self.used_bytes + needed_bytes > self.budget_bytes:
            if self._is_closed:
                raise stopping()
            if idle := eviction_order(self._seats.values()):
                await asyncio.wait({self._retire(idle[0], is_evicted=True)})
            elif not await self._changed(deadline_s - loop.time()):
                raise others_in_use(record, needed_bytes, self.used_bytes, self.budget_bytes)

    async def _make_free(self, needed_bytes: int, record: EngineRecord) -> None:
        """Evict idle engines until the device has so much left: others use its memory as well."""
        room = await self.free_up(needed_bytes, record.built.facts.backend)
        if room.evicted:
            log.info("engines evicted", extra={"to_load": record.ref, "evicted": ", ".join(room.evicted)})
        if room.free_bytes < needed_bytes:
            raise device_full(record, needed_bytes, room.free_bytes)

    async def _evict_idle(self) -> bool:
        idle = eviction_order(self._seats.values())
        if idle:
            await asyncio.wait({self._retire(seat, is_evicted=True) for seat in idle})
        return bool(idle)

    def _retire(self, seat: Seat, *, is_evicted: bool = False) -> asyncio.Task[None]:
        """Take the seat out of use; the task ends when its memory is free."""
        del self._seats[seat.record.blob]
        self._leaving.add(seat)
        seat.left = asyncio.create_task(self._leave(seat))
        self.events.draining(seat.record, is_evicted=is_evicted)
        return seat.left

    def _leaving_of(self, record: EngineRecord) -> set[asyncio.Task[None]]:
        return {seat.left for seat in self._leaving if seat.left and seat.record.blob == record.blob}

    async def _leave(self, seat: Seat) -> None:
        await asyncio.wait({seat.loading})
        while seat.leases and not self._is_closed:
            await self._changed(None)
        if seat.copies_bytes and self.give_up_copies is not None:
            await self.give_up_copies(seat.record.blob)
        if seat.warm:
            await seat.warm.close()
        self._leaving.discard(seat)
        if seat.warm:
            self.events.unloaded(seat.record)
        self._tell_change()

    async def _changed(self, timeout_s: float | None) -> bool:
        """Wait until a lease ends or an engine has left; False when the time is over."""
        if self._change is None:
            self._change = asyncio.get_running_loop().create_future()
        return bool((await asyncio.wait({self._change}, timeout=timeout_s))[0])

    def _tell_change(self) -> None:
        change, self._change = self._change, None
        if change:
            change.set_result(None)

    def _described(self, seats: Sequence[Seat]) -> list[WarmState]:
        now_s = self._clock()
        places = {seat: place for place, seat in enumerate(eviction_order(self._seats.values()), 1)}
        return [seat.described(now_s, self.estimate_bytes(seat.record), places.get(seat)) for seat in seats]

    def _sweep_anew(self) -> None:
        """Look for unused engines as often as the shortest keep-alive time asks for."""
        if self._sweeper:
            self._sweeper.cancel()
        keep_alive_s = [seat.keep_alive_s for seat in self._seats.values() if seat.keep_alive_s > 0]
        self._sweeper = asyncio.create_task(self._sweep(min([*keep_alive_s, 4 * SWEEP_S_MAX]) / 4))

    async def _sweep(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self.unload_unused()
