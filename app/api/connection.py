"""Connections: inference bodies are received where the engine reads them; every other request is uvicorn's.

uvicorn hands a body over in pieces, copied four times on the way. Here the kernel writes it straight into the buffer
that numpy then looks at. Heads are read by the same parser, and those seen before are known by their bytes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from app.api.exchange import Exchange
from app.api.heads import HEAD_BYTES_MAX, Heads, Planner
from app.api.responses import header_lines
from app.connections import BODY_BYTES_MIN, ConnectionLimits, GuardedProtocol
from app.domain.errors import ConnectionsFull, ServiceError

READ_BYTES = 1 << 14  # a small request in one read; what it holds of a large body is copied
AHEAD_BYTES_MAX = 1 << 16  # of pipelined requests that wait for the one before
SWEEP_S = 1.0
BUSY_REQUESTS, BUSY_S = 32, 0.5  # so many requests in so long: a connection that another process might relieve
CLEARED_SHARE = 0.05  # of the connections: so many idle ones leave at once when a new one finds no room


class Others(Protocol):
    """The processes that busy connections can go to."""

    @property
    def connections(self) -> int:
        """How many are there."""
        ...

    def want(self, connection: Connection, ref: str) -> bool:
        """Whether one of them would relieve this process of the connection, which keeps asking for that engine."""
        ...

    def take(self, connection: Connection, ref: str) -> bool:
        """Whether the connection has gone to one of them; it must be between two requests."""
        ...


class Front:
    """What the connections of one server share. uvicorn takes it for its class of protocols."""

    def __init__(self, planner: Planner, limits: ConnectionLimits, others: Others | None = None) -> None:
        """
        Args:
            planner: says which requests are taken here, by their heads.
            limits: of connections that make the server wait.
            others: None: all connections stay in this process.
        """
        self.others = others
        self._made: Callable[[], Connection] | None = None  # as uvicorn has them made
        self.heads = Heads(planner)
        self.limits = limits
        # One buffer for all: what was read is used up before anything else is read.
        self.read = bytearray(READ_BYTES)
        self.view = memoryview(self.read)
        self._sweeper: asyncio.TimerHandle | None = None
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._openings: dict[int, bytes] = {}  # by status

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        loop = _loop or asyncio.get_running_loop()
        if self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP_S, self._sweep, loop, server_state)
            self._made = partial(self, config, server_state, app_state, loop)
        uvicorn = _Uvicorn(self.limits, config, server_state, app_state, loop)
        return Connection(self, config, server_state, uvicorn, loop)

    async def adopt(self, accepted: socket.socket, data: bytes, *, stays: bool) -> None:
        """Go on with a connection that was in another process.

        Args:
            data: read from it there, and not answered.
            stays: it shall not go there again.
        """
        assert self._made is not None
        connection = self._made()
        connection.inherit(data, stays=stays)
        await connection.loop.connect_accepted_socket(lambda: connection, accepted)

    def opening(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """An answer's first lines.

        Args:
            headers: uvicorn's own; it makes a new list of them every second.
        """
        if headers is not self._default_headers:
            self._default_headers = headers
            self._openings.clear()
        if status not in self._openings:
            self._openings[status] = STATUS_LINE[status] + header_lines(headers)
        return self._openings[status]

    def admit(self, joined: Connection) -> None:
        """Make room for a new connection among the others, or refuse it."""
        most = self.limits.connections_max
        there = self.others.connections if self.others is not None else 0
        if len(joined.state.connections) + there > most and not self._cleared(
            joined, max(1, int(most * CLEARED_SHARE))
        ):
            joined.refuse(
                ConnectionsFull(
                    f"{most} connections have a request under way, and no more are taken.",
                    hint="Send the request again in a moment, or raise max_connections.",
                )
            )

    def _cleared(self, joined: Connection, count: int) -> bool:
        """Close the connections that have been idle for longest; whether there was one."""
        others = [one for one in joined.state.connections if isinstance(one, Connection) and one is not joined]
        idle = sorted((one for one in others if one.is_idle), key=lambda one: one.seen_s)
        for one in idle[:count]:
            one.transport.close()
            one.state.connections.discard(one)  # counted no more; its end comes a turn later
        return bool(idle)

    def _sweep(self, loop: asyncio.AbstractEventLoop, state: ServerState) -> None:
        now_s = time.monotonic()
        for connection in list(state.connections):
            if isinstance(connection, Connection):
                connection.end_if_late(now_s)
        self._sweeper = loop.call_later(SWEEP_S, self._sweep, loop, state)


class Rest(Protocol):
    """Who has the requests of a connection that are not answered here: uvicorn, in the service's own process."""

    scheme: Literal["http", "https"] | None
    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    app_state: dict[str, Any]

    @property
    def is_at_rest(self) -> bool:
        """Whether it is between two requests."""
        ...

    @property
    def is_idle(self) -> bool: ...

    def connection_made(self, transport: asyncio.Transport) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def shutdown(self) -> None: ...
    def rest(self) -> None: ...
    def forget_keep_alive(self) -> None: ...
    def end_if_late(self, now_s: float) -> None: ...
    def refuse(self, error: ServiceError) -> None: ...
    def refuse_slow_body(self) -> None: ...

    def takes_long_way(self, exchange: Exchange) -> bool:
        """Whether it answers a request that the fast path has not taken; else the application does."""
        ...


class Connection(asyncio.BufferedProtocol):
    """One connection: at each request's head it is decided who answers it."""

    def __init__(
        self, front: Front, config: Config, state: ServerState, rest: Rest, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.front = front
        self.config = config
        self.state = state
        self.loop = loop
        self.transport: asyncio.Transport
        self.is_closing = False  # after the answer under way
        self.rest = rest
        self._exchange: Exchange | None = None  # the request that is answered here
        self._ahead = b""  # came behind it
        self._is_paused = False
        self._is_full = False  # the client does not take its answers
        self._is_held = False  # its next request waits until it does
        self._has_served = False  # the last request was answered here
        self.seen_s = time.monotonic()
        self._stretch_since_s = self.seen_s  # of a body that is received here
        self._stretch_bytes = 0
        self._stays = front.others is None  # in this process
        self._in_a_row = 0  # requests that the fast path has answered
        self._row_since_s = self.seen_s

    # --- asyncio's calls -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, though not by inheritance
        self.rest.connection_made(self.transport)
        # A stop of the server goes through here: uvicorn's half does not know of the other.
        self.state.connections.discard(self.rest)
        self.state.connections.add(self)  # type: ignore[arg-type]
        self.front.admit(self)
        if self._ahead:
            self._is_held = True
            self.loop.call_soon(self._go_on)  # the loop has still to begin to read, and would undo a pause

    def get_buffer(self, sizehint: int) -> memoryview:
        exchange = self._exchange
        return self.front.view if exchange is None or exchange.room is None else exchange.room

    def buffer_updated(self, nbytes: int) -> None:
        self.seen_s = time.monotonic()
        exchange = self._exchange
        if exchange is not None and exchange.room is not None:
            self._stretch_bytes += nbytes
            exchange.filled(nbytes)
        elif exchange is not None or self._is_held:
            self.keep(bytes(self.front.view[:nbytes]))
        else:
            self._take(self.front.read, nbytes)

    def eof_received(self) -> None:
        return  # as uvicorn: the transport closes

    def connection_lost(self, exc: Exception | None) -> None:
        self.state.connections.discard(self)
        if self._exchange is not None:
            self._exchange.abandon()
        self.rest.connection_lost(exc)

    def pause_writing(self) -> None:
        self._is_full = True
        self.rest.pause_writing()

    def resume_writing(self) -> None:
        self._is_full = False
        self.rest.resume_writing()
        if self._exchange is not None:
            self._exchange.drained()
        elif self._is_held:
            self._go_on()

    def shutdown(self) -> None:
        """uvicorn stops: end after the answer under way."""
        if self._exchange is not None:
            self.is_closing = True
        else:
            self.rest.shutdown()

    # --- requests --------------------------------------------------------------------------------------------------

    @property
    def app(self) -> Any:
        return self.config.app  # not uvicorn's, which looks for a proxy's headers: such requests are uvicorn's

    @property
    def addresses(self) -> tuple[Any, Any, Any]:
        """Scheme, client and server of the connection, as ASGI has them."""
        return self.rest.scheme, self.rest.client, self.rest.server

    @property
    def client_address(self) -> str:
        client = self.rest.client
        return client[0] if client else ""

    @property
    def app_state(self) -> dict[str, Any]:
        return self.rest.app_state

    @property
    def is_full(self) -> bool:
        return self._is_full

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way here or at uvicorn's."""
        return self._exchange is None and not self._is_held and self.rest.is_idle

    def opening(self, status: int) -> bytes:
        """The first lines of an answer."""
        return self.front.opening(status, self.state.default_headers)

    def refuse(self, error: ServiceError) -> None:
        """Answer with this error and close."""
        self.rest.refuse(error)

    def ended(self, *, keeps_alive: bool) -> None:
        """The exchange is over: its answer is written, its body used up."""
        ended, self._exchange = self._exchange, None
        assert ended is not None
        self.seen_s = time.monotonic()
        self._has_served = True
        self.state.total_requests += 1
        if not keeps_alive or self.is_closing:
            self.transport.close()
        elif self._is_full:
            self._is_held = True
        elif self._is_to_leave(ended):
            self.pause()
            self.loop.call_soon(self._leave, ended.ref)  # later: the answer is still to be written
        else:
            self._go_on()

    def inherit(self, data: bytes, *, stays: bool) -> None:
        """Begin with what another process has read from this connection."""
        self._ahead = data
        self._stays = self._stays or stays
        self._has_served = not data
        self.rest.rest()

    def part(self) -> int:
        """Close this end, whatever is under way; a descriptor of the connection."""
        descriptor = os.dup(self.transport.get_extra_info("socket").fileno())
        self.transport.abort()
        return descriptor

    @property
    def unanswered(self) -> bytes:
        """What has been read and not answered."""
        return (self._exchange.received if self._exchange is not None else b"") + self._ahead

    @property
    def under_way(self) -> Exchange | None:
        """The request that is answered here."""
        return self._exchange

    def takes_long_way(self, exchange: Exchange) -> bool:
        """Whether somebody else than the application answers what the fast path has not taken."""
        return self.rest.takes_long_way(exchange)

    def _is_to_leave(self, ended: Exchange) -> bool:
        """After enough requests in a short time: whether another process has less to do."""
        if self._stays or not ended.was_fast or self._ahead:
            return False
        self._in_a_row += 1
        if self._in_a_row < BUSY_REQUESTS:
            return False
        self._in_a_row = 0
        since_s, self._row_since_s = self._row_since_s, self.seen_s
        others = self.front.others
        return others is not None and self.seen_s - since_s <= BUSY_S and others.want(self, ended.ref)

    def _leave(self, ref: str) -> None:
        assert self.front.others is not None
        is_free = not (self.transport.is_closing() or self.transport.get_write_buffer_size())
        if not (is_free and self.front.others.take(self, ref)):
            self._go_on()

    def pause(self) -> None:
        """Let the client wait with the rest."""
        if not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._is_paused and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()

    def end_if_late(self, now_s: float) -> None:
        """End the connection when it has waited too long for its client."""
        self.rest.end_if_late(now_s)
        if self._exchange is not None:
            self._end_slow_body(self._exchange, now_s)
        elif self._has_served and not self._is_held and now_s - self.seen_s > self.config.timeout_keep_alive:
            self.transport.close()

    def _end_slow_body(self, exchange: Exchange, now_s: float) -> None:
        if not exchange.waits_for_client or now_s - self._stretch_since_s <= self.front.limits.body_timeout_s:
            return
        if self._stretch_bytes >= BODY_BYTES_MIN:
            self._stretch_since_s, self._stretch_bytes = now_s, 0
        else:
            exchange.abandon()
            self.rest.refuse_slow_body()

    def _take(self, data: bytes | bytearray, size: int) -> None:
        """What was read while nothing was under way here."""
        view = memoryview(data)[:size]
        plan, head_bytes = None, 0
        if self._has_served or self.rest.is_at_rest:
            head_bytes = data.find(b"\r\n\r\n", 0, min(size, HEAD_BYTES_MAX)) + 4
            plan = self.front.heads.plan(bytes(view[:head_bytes])) if head_bytes > 3 else None
        if plan is None:
            self._has_served = False
            self.rest.data_received(bytes(view))
            return
        if not self._has_served:  # else uvicorn's half has seen nothing since
            self.rest.forget_keep_alive()
            self.rest.rest()
        self._stretch_since_s, self._stretch_bytes = self.seen_s, 0
        self._exchange = Exchange(self, plan)
        rest = self._exchange.begin(view[head_bytes:])
        if len(rest):
            self.keep(bytes(rest))

    def keep(self, data: bytes) -> None:
        self._ahead += data
        if len(self._ahead) > AHEAD_BYTES_MAX:
            self.pause()

    def _go_on(self) -> None:
        """Begin with what came during the exchange before."""
        self._is_held = False
        if self._is_paused:
            self.resume()
        if self._ahead and not self.transport.is_closing():
            ahead, self._ahead = self._ahead, b""
            self.seen_s = time.monotonic()
            self._take(ahead, len(ahead))


class _Uvicorn(GuardedProtocol):
    """uvicorn's protocol, which also tells whether it is between two requests."""

    _is_in_message = False

    def on_message_begin(self) -> None:
        self._is_in_message = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._is_in_message = False
        super().on_message_complete()

    @property
    def is_at_rest(self) -> bool:
        return not self._is_in_message and (self.cycle is None or self.cycle.response_complete) and not self.pipeline

    def forget_keep_alive(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()

    def takes_long_way(self, exchange: Exchange) -> bool:
        return False
