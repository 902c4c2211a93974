"""The replica's process: connections come in over the channel, and go back over it."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import ExitStack
from email.utils import formatdate
from functools import partial
from typing import Any, cast

import uvicorn
import uvloop
from uvicorn.server import ServerState

from app.api import headers, request_ids
from app.api.connection import Connection
from app.api.exchange import EAGER_BYTES, Exchange
from app.api.fast_path import FastPath
from app.api.front import Front
from app.api.heads import Head, Plan
from app.api.observed import RequestCounts
from app.api.shortcut import planned
from app.connections import limits_of
from app.domain.builds import Digest, EngineRecord
from app.domain.errors import ServiceError
from app.replicas.background import Background
from app.replicas.channel import Channel
from app.replicas.messages import Back, Drop, Dropped, Forget, Load, Loaded, Take, Tally, ToReplica
from app.replicas.returned import Returned
from app.settings import Settings
from app.wiring import Copies, connected_copies

log = logging.getLogger(__name__)

TICK_S = 0.1  # between two accounts of what was answered
WRITE_S = 0.001  # between two looks whether an answer has been written
IDLE_S = 1.0  # a connection that asks nothing for so long goes back


def run(settings: Settings, end: socket.socket) -> None:
    """Serve until the other end is gone. For a process that was just forked."""
    request_ids.restart()
    uvloop.run(_served(settings, end))


async def _served(settings: Settings, end: socket.socket) -> None:
    with ExitStack() as opened:
        await Replica(settings, end, opened).ended.wait()


class Replica:
    """Copies of engines, and the connections that ask for them."""

    def __init__(self, settings: Settings, end: socket.socket, opened: ExitStack) -> None:
        self.ended = asyncio.Event()
        self.background = Background()
        self._settings = settings
        self._opened = opened
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(end, self._got, self.ended.set)
        self._state = ServerState()
        self._config = uvicorn.Config(
            _unused,
            http="httptools",
            ws="none",  # these import nothing more
            lifespan="off",
            log_config=None,
            server_header=False,
            headers=headers.ALWAYS,
        )
        self._config.load()
        self._limits = limits_of(settings)
        self._counts = RequestCounts()
        self._copies: Copies | None = None  # opened for the first engine: a replica with nothing to do costs little
        self._front: Front | None = None
        self._records: dict[Digest, EngineRecord] = {}  # of the copies
        self._used: dict[Digest, tuple[int, int, int]] = {}  # what their counters showed at the last tally
        self._closed = 0  # connections, since the last tally, that were not handed back
        self._opening = 0  # connections that have come and are not open yet
        self._is_ticking = False
        self._is_stopping = False

    # --- what the service's process asks ---------------------------------------------------------------------------

    def _got(self, message: ToReplica, files: list[int]) -> None:
        if isinstance(message, Take):
            self._take(socket.socket(fileno=files[0]))
        elif isinstance(message, Load):
            self.background.start(self._load(message.ref))
        elif isinstance(message, Drop):
            self.background.start(self._drop(message.blob))
        elif isinstance(message, Forget):
            if self._copies is not None:
                self._copies.inference.forget(message.name)
        else:
            self._stop()

    def _take(self, accepted: socket.socket) -> None:
        if self._front is None or self._is_stopping:
            self._channel.send(Back(b""), [accepted.detach()])
            return
        rest = Returned(self)
        rest.connection = Connection(self._front, self._config, self._state, rest, self._loop)
        self._opening += 1
        if not self._is_ticking:
            self._is_ticking = True
            self._tick()
        self.background.start(self._connected(rest.connection, accepted))

    async def _connected(self, connection: Connection, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError:  # its client is gone already
            accepted.close()
            self._closed += 1
        finally:
            self._opening -= 1

    async def _load(self, ref: str) -> None:
        inference = self._opened_copies().inference
        try:
            record = await inference.find(ref)
            state = await inference.pool.load(record)
        except ServiceError as error:
            log.warning("a copy of an engine did not load", extra={"engine": ref, "reason": error.detail})
            self._channel.send(Loaded(ref, None))
            return
        self._records[record.blob] = record
        self._channel.send(Loaded(ref, record.blob, state.device_bytes))

    async def _drop(self, blob: Digest) -> None:
        record = self._records.pop(blob, None)
        if record is not None:
            self._used.pop(blob, None)
            await self._opened_copies().inference.pool.unload(record)
        self._tally()  # first: what is counted for a deleted engine is forgotten once its copies are gone
        self._channel.send(Dropped(blob))

    def _stop(self) -> None:
        self._is_stopping = True
        for connection in self._connections():
            connection.shutdown()
        self._end_if_empty()

    # --- connections ------------------------------------------------------------------------------------------------

    def hand_back(self, rest: Returned, *, ref: str | None = None, stays: bool = False) -> None:
        """Give the connection to the service's process, with what it has read and not answered.

        Args:
            ref: the engine of which there is no warm copy here.
            stays: it need not come again.
        """
        rest.is_leaving = True
        connection = rest.connection
        if connection.transport.is_closing():
            return
        connection.pause()
        if connection.transport.get_write_buffer_size():  # of the answer before
            self._loop.call_later(WRITE_S, partial(self.hand_back, rest, ref=ref, stays=stays))
            return
        back = Back(connection.unanswered, ref, stays)
        self._tally()  # first: whoever asks next is told of all that was answered
        rest.is_returned = True
        self._channel.send(back, [connection.part()])

    def lost(self, rest: Returned) -> None:
        """A connection is closed, here or by its return."""
        self._closed += not rest.is_returned
        self._end_if_empty()

    async def retry(self, rest: Returned, exchange: Exchange) -> None:
        """Look the engine up, as that was too long ago, and try once more; else the request goes back."""
        inference = self._opened_copies().inference
        try:
            is_here = inference.is_warm(await inference.find(exchange.ref))
        except ServiceError:
            is_here = False
        connection = rest.connection
        if connection.under_way is not exchange or connection.transport.is_closing():
            return
        if not is_here:
            self.hand_back(rest, ref=exchange.ref)
        elif not exchange.try_again():
            self.hand_back(rest, stays=True)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _opened_copies(self) -> Copies:
        if self._copies is None:
            self._copies = copies = self._opened.enter_context(connected_copies(self._settings))
            fast_path = FastPath(copies.inference, copies.door, self._counts, refuses=False)
            self._front = Front(partial(_planned, copies, fast_path), self._limits, copies.bodies)
        return self._copies

    def _connections(self) -> list[Connection]:
        return [one for one in self._state.connections if isinstance(one, Connection)]

    def _tick(self) -> None:
        """While there are connections: tell what was answered, and give back those that are idle."""
        now_s = time.monotonic()
        date = (b"date", formatdate(time.time(), usegmt=True).encode())
        if date not in self._state.default_headers:
            self._state.default_headers = [date, *self._config.encoded_headers]
        for connection in self._connections():
            self._end_wait(connection, now_s - connection.seen_s)
        self._tally()
        self._is_ticking = bool(self._state.connections) or self._opening > 0
        if self._is_ticking:
            self._loop.call_later(TICK_S, self._tick)

    def _end_wait(self, connection: Connection, waited_s: float) -> None:
        """The service's process has more patience with who asks nothing; nobody has any with who takes no answer."""
        rest, exchange = cast(Returned, connection.rest), connection.under_way
        if connection.is_full and waited_s > self._limits.body_timeout_s:
            connection.transport.abort()
        elif waited_s <= IDLE_S or connection.is_full or rest.is_leaving:
            return
        elif exchange is None or exchange.waits_for_client:
            self.hand_back(rest)

    def _tally(self) -> None:
        """Tell what was answered since the last time, if anything was."""
        closed, self._closed = self._closed, 0
        if self._copies is None or not (closed or self._counts.answered):
            return
        statistics = self._copies.inference.statistics
        self._channel.send(Tally(statistics.taken(), self._used_since(), self._counts.taken(), closed))

    def _used_since(self) -> dict[Digest, tuple[int, int, int]]:
        found = {}
        for state in self._opened_copies().inference.states():
            now, before = (state.requests, state.rows, state.runs), self._used.get(state.blob, (0, 0, 0))
            self._used[state.blob] = now
            found[state.blob] = (now[0] - before[0], now[1] - before[1], now[2] - before[2])
        return found

    def _end_if_empty(self) -> None:
        if self._is_stopping and not self._state.connections:
            self._tally()
            self.ended.set()


def _planned(copies: Copies, fast_path: FastPath, head: Head) -> Plan | None:
    """Only what the fast path may take; all else goes back."""
    plan = planned(copies, fast_path, head)
    return plan if plan is not None and plan.begin is not None and head.body_bytes <= EAGER_BYTES else None


async def _unused(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("A replica has no application.")
