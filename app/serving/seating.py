"""Seating: the seats of a pool within its memory budget: who has one, who leaves for whom, when its room is free."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial

from app.domain.builds import Digest, EngineRecord
from app.room import Room
from app.serving.pool_events import PoolEvents
from app.serving.refusals import device_full, others_in_use, over_budget, stopping
from app.serving.seats import Seat, eviction_order

log = logging.getLogger(__name__)


class Seating:
    """Used on the event loop only."""

    def __init__(
        self,
        events: PoolEvents,
        *,
        budget_bytes: int,
        free_bytes: Callable[[str], int],
        keeper: Executor,
        room_wait_s: float,
    ) -> None:
        """
        Args:
            free_bytes: memory that the backend of that name could still take; may block, runs on the keeper.
            room_wait_s: how long a load waits for leased engines to be given back.
        """
        self.budget_bytes = budget_bytes
        self.give_up_copies: Callable[[Digest], Awaitable[None]] | None = None  # of an engine, in other processes
        self.is_closed = False
        self._events = events
        self._free_bytes = free_bytes
        self._keeper = keeper
        self._room_wait_s = room_wait_s
        self._seats: dict[Digest, Seat] = {}  # loading or ready
        self._leaving: set[Seat] = set()  # their memory is not free yet
        self._change: asyncio.Future[None] | None = None  # done when a lease ends or an engine has left

    # --- who is there ----------------------------------------------------------------------------------------------

    @property
    def seats(self) -> list[Seat]:
        """Of engines that are loading or ready."""
        return [*self._seats.values()]

    @property
    def leaving(self) -> list[Seat]:
        return [*self._leaving]

    def of(self, blob: Digest) -> Seat | None:
        """The engine's seat, unless it is leaving."""
        return self._seats.get(blob)

    def add(self, seat: Seat) -> None:
        self._seats[seat.record.blob] = seat

    def remove(self, seat: Seat) -> None:
        """Its engine did not load."""
        if self._seats.get(seat.record.blob) is seat:
            del self._seats[seat.record.blob]

    def holders(self, blob: Digest) -> list[Seat]:
        """The engine's seat, else those that it is leaving."""
        seat = self._seats.get(blob)
        return [seat] if seat is not None else [one for one in self._leaving if one.record.blob == blob]

    @property
    def used_bytes(self) -> int:
        """Memory of all engines that are loaded."""
        every = (*self._seats.values(), *self._leaving)
        return sum(seat.warm.device_bytes + seat.copies_bytes for seat in every if seat.warm)

    def has_room_for(self, needed_bytes: int) -> bool:
        """Whether so much fits into the budget as it is."""
        return self.used_bytes + needed_bytes <= self.budget_bytes

    def eviction_order(self) -> list[Seat]:
        """Who could leave, the next one first."""
        return eviction_order(self._seats.values())

    # --- who leaves ------------------------------------------------------------------------------------------------

    def retire(self, seat: Seat, *, is_evicted: bool = False) -> asyncio.Task[None]:
        """Take the seat out of use; the task ends when its memory is free."""
        del self._seats[seat.record.blob]
        self._leaving.add(seat)
        seat.left = asyncio.create_task(self._leave(seat))
        self._events.draining(seat.record, is_evicted=is_evicted)
        return seat.left

    def leaving_of(self, record: EngineRecord) -> set[asyncio.Task[None]]:
        """Ends of the seats that the engine is leaving."""
        return {seat.left for seat in self._leaving if seat.left and seat.record.blob == record.blob}

    async def evict_idle(self) -> bool:
        """Whether anybody had to leave."""
        idle = self.eviction_order()
        if idle:
            await asyncio.wait({self.retire(seat, is_evicted=True) for seat in idle})
        return bool(idle)

    def tell_change(self) -> None:
        """A lease has ended."""
        change, self._change = self._change, None
        if change:
            change.set_result(None)

    async def close(self) -> None:
        """Let what runs end, and close every engine."""
        self.is_closed = True
        for seat in self.seats:
            self.retire(seat)
        self.tell_change()
        if self._leaving:
            await asyncio.wait({seat.left for seat in self._leaving if seat.left})

    # --- room ------------------------------------------------------------------------------------------------------

    async def make_room(self, needed_bytes: int, record: EngineRecord) -> None:
        """Evict idle engines until so much fits; wait, within bounds, for leased ones to become idle.

        Raises:
            EngineTooLarge: it will not fit.
            ShuttingDown: the pool is closed.
        """
        if needed_bytes > self.budget_bytes:
            raise over_budget(record, needed_bytes, self.budget_bytes)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._room_wait_s
        while not self.has_room_for(needed_bytes):
            if self.is_closed:
                raise stopping()
            if idle := self.eviction_order():
                await asyncio.wait({self.retire(idle[0], is_evicted=True)})
            elif not await self._changed(deadline_s - loop.time()):
                raise others_in_use(record, needed_bytes, self.used_bytes, self.budget_bytes)

    async def make_free(self, needed_bytes: int, record: EngineRecord) -> None:
        """Evict idle engines until the device has so much left: others use its memory as well.

        Raises:
            EngineTooLarge: it has less.
        """
        room = await self.free_up(needed_bytes, record.built.facts.backend)
        if room.evicted:
            log.info("engines evicted", extra={"to_load": record.ref, "evicted": ", ".join(room.evicted)})
        if room.free_bytes < needed_bytes:
            raise device_full(record, needed_bytes, room.free_bytes)

    async def free_up(self, needed_bytes: int, backend: str) -> Room:
        """Evict idle engines, the least recently used first, until that backend could take so much.

        Returns:
            What is free now, which may be less, and which engines had to go.
        """
        evicted: list[str] = []
        look = partial(asyncio.get_running_loop().run_in_executor, self._keeper, self._free_bytes, backend)
        while (free := await look()) < needed_bytes:
            idle = self.eviction_order()
            if not idle:
                break
            evicted += sorted(idle[0].refs)
            await asyncio.wait({self.retire(idle[0], is_evicted=True)})
        return Room(free, tuple(evicted))

    async def _leave(self, seat: Seat) -> None:
        await asyncio.wait({seat.loading})
        while seat.leases and not self.is_closed:
            await self._changed(None)
        if seat.copies_bytes and self.give_up_copies is not None:
            await self.give_up_copies(seat.record.blob)
        if seat.warm:
            await seat.warm.close()
        self._leaving.discard(seat)
        if seat.warm:
            self._events.unloaded(seat.record)
        self.tell_change()

    async def _changed(self, timeout_s: float | None) -> bool:
        """Wait until a lease ends or an engine has left; False when the time is over."""
        if self._change is None:
            self._change = asyncio.get_running_loop().create_future()
        return bool((await asyncio.wait({self._change}, timeout=timeout_s))[0])
