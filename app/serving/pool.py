"""EnginePool: which engines are warm. Leases, one load at a time, budget, eviction, keep-alive, pins."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from app.backends.base import LoadedEngine
from app.domain.builds import Digest, EngineRecord
from app.domain.errors import EngineTooLarge, EngineUnloadable, InUse, ServiceError
from app.serving.room import all_in_use, eviction_order, larger_than_budget, no_memory, stopping, unloadable
from app.serving.seats import EngineState, Seat, WarmState
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
        clock: Callable[[], float] = time.monotonic,
        room_wait_s: float = 5,
        drain_s: float = 30,
    ) -> None:
        """
        Args:
            load: loads an engine's file; may block, runs on a thread of the pool.
            keep_alive_s: 0 = unused engines stay until their room is needed.
            contexts: of each engine.
            queue_rows_max: rows that may wait for one engine.
            clock: seconds; decides what is unused and for how long.
            room_wait_s: how long a load waits for leased engines to be given back.
            drain_s: how long `unload` waits for leases to end.
        """
        self.budget_bytes = budget_bytes
        self._load_file = load
        self.keep_alive_s = keep_alive_s
        self._contexts = contexts
        self._queue_rows_max = queue_rows_max
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

    async def unload_unused(self) -> None:
        """Unload what nobody has used for its keep-alive time; also done in the background."""
        now_s = self._clock()
        unused = [seat for seat in self._seats.values() if seat.is_unused(now_s)]
        if unused:
            await asyncio.wait({self._retire(seat) for seat in unused})

    def states(self) -> list[WarmState]:
        """Every engine that is loading, ready or draining."""
        return self._described([*self._seats.values(), *self._leaving])

    def estimate_bytes(self, record: EngineRecord) -> int:
        """What the engine takes: as measured when it was last loaded, else the size of its file."""
        return self._measured.get(record.blob, record.built.size_bytes)

    @property
    def used_bytes(self) -> int:
        """Memory of all engines that are loaded."""
        return sum(seat.warm.device_bytes for seat in (*self._seats.values(), *self._leaving) if seat.warm)

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
            raise
        seat.load_s = time.perf_counter() - started_s
        seat.loaded_s = self._clock()
        seat.touch(seat.loaded_s)
        seat.loaded_at = seat.last_used_at
        log.info("engine loaded", extra={"engine": seat.record.ref, "seconds": round(seat.load_s, 3)})
        return seat.warm

    async def _loaded(self, record: EngineRecord) -> WarmEngine:
        await self._make_room(self.estimate_bytes(record), record)
        try:
            warm = await self._opened(record)
        except (EngineTooLarge, EngineUnloadable):  # perhaps for want of memory
            idle = eviction_order(self._seats.values())
            if not idle:
                raise
            await asyncio.wait({self._retire(seat) for seat in idle})
            warm = await self._opened(record)
        self._measured[record.blob] = warm.device_bytes
        try:
            await self._make_room(warm.device_bytes, record)  # it may be larger than its estimate
        except BaseException:
            await warm.close()
            raise
        return warm

    async def _opened(self, record: EngineRecord) -> WarmEngine:
        try:
            engine = await asyncio.get_running_loop().run_in_executor(self._keeper, self._load_file, record)
            return await WarmEngine.opened(
                engine,
                record.built.signature,
                contexts=self._contexts,
                queue_rows_max=self._queue_rows_max,
                keeper=self._keeper,
            )
        except ServiceError:
            raise
        except MemoryError as error:
            raise no_memory(record) from error
        except Exception as error:
            log.exception("an engine did not load", extra={"engine": record.ref})
            raise unloadable(record, error) from error

    async def _make_room(self, needed_bytes: int, record: EngineRecord) -> None:
        """Evict idle engines until so much fits; wait, within bounds, for leased ones to become idle."""
        if needed_bytes > self.budget_bytes:
            raise larger_than_budget(record, needed_bytes, self.budget_bytes)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._room_wait_s
        while self.used_bytes + needed_bytes > self.budget_bytes:
            if self._is_closed:
                raise stopping()
            if idle := eviction_order(self._seats.values()):
                await asyncio.wait({self._retire(idle[0])})
            elif not await self._changed(deadline_s - loop.time()):
                raise all_in_use(record, needed_bytes, self.used_bytes, self.budget_bytes)

    def _retire(self, seat: Seat) -> asyncio.Task[None]:
        """Take the seat out of use; the task ends when its memory is free."""
        del self._seats[seat.record.blob]
        self._leaving.add(seat)
        seat.left = asyncio.create_task(self._leave(seat))
        return seat.left

    def _leaving_of(self, record: EngineRecord) -> set[asyncio.Task[None]]:
        return {seat.left for seat in self._leaving if seat.left and seat.record.blob == record.blob}

    async def _leave(self, seat: Seat) -> None:
        await asyncio.wait({seat.loading})
        while seat.leases and not self._is_closed:
            await self._changed(None)
        if seat.warm:
            await seat.warm.close()
            log.info("engine unloaded", extra={"engine": seat.record.ref})
        self._leaving.discard(seat)
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
