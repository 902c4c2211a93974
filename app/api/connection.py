"""Connection: its inference bodies are received where the engine reads them; every other request is uvicorn's.

uvicorn hands a body over in pieces, copied four times on the way. Here the kernel writes it straight into the buffer
that numpy then looks at. Heads are read by the same parser, and those seen before are known by their bytes.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from app.api.exchange import Exchange
from app.api.heads import HEAD_BYTES_MAX
from app.api.rest import Rest
from app.connections import BODY_BYTES_MIN
from app.domain.errors import ServiceError

if TYPE_CHECKING:
    from app.api.front import Front

AHEAD_BYTES_MAX = 1 << 16  # of pipelined requests that wait for the one before
BUSY_REQUESTS, BUSY_S = 32, 0.5  # so many requests in so long: a connection that another process might relieve


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
        self._ended_s = 0.0  # when its last request was answered here
        self._is_prompt = False  # it asks again at once, and nobody else does

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
        self.front.calm.received_bytes += nbytes
        exchange = self._exchange
        if exchange is not None and exchange.room is not None:
            self._stretch_bytes += nbytes
            exchange.filled(nbytes)
            self._await_body(exchange)
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
        self.seen_s = self._ended_s = time.monotonic()
        if self._is_prompt:
            self.front.busy_poll.begin(self.loop, self._ended_s)
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
        self._is_prompt = self.front.busy_poll.deserves(self, self.seen_s - self._ended_s)
        self._exchange = exchange = Exchange(self, plan)
        rest = exchange.begin(view[head_bytes:])
        self._await_body(exchange)
        if len(rest):
            self.keep(bytes(rest))

    def _await_body(self, exchange: Exchange) -> None:
        """Stay awake for what is missing of the body, and no longer."""
        if not self._is_prompt:
            return
        if exchange.room is not None:
            self.front.busy_poll.begin(self.loop, self.seen_s)
        else:
            self.front.busy_poll.end()

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
