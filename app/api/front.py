"""Front: makes the connections of a server, and knows what they have in common."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from app import heap
from app.api.body_room import BodyRoom
from app.api.busy_poll import BusyPoll
from app.api.connection import Connection
from app.api.exchange import Exchange
from app.api.heads import Heads, Planner
from app.api.responses import header_lines
from app.connections import ConnectionLimits, GuardedProtocol
from app.domain.errors import ConnectionsFull

READ_BYTES = 1 << 14  # a small request in one read; what it holds of a large body is copied
SWEEP_S = 1.0
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

    def __init__(
        self, planner: Planner, limits: ConnectionLimits, bodies: BodyRoom, others: Others | None = None
    ) -> None:
        """
        Args:
            planner: says which requests are taken here, by their heads.
            limits: of connections that make the server wait.
            bodies: where the bodies of all requests find room.
            others: None: all connections stay in this process.
        """
        self.others = others
        self._made: Callable[[], Connection] | None = None  # as uvicorn has them made
        self.heads = Heads(planner)
        self.limits = limits
        self.bodies = bodies
        self.busy_poll = BusyPoll(limits.busy_poll_s)
        self.calm = heap.Calm()
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
        self.calm.look()
        self._sweeper = loop.call_later(SWEEP_S, self._sweep, loop, state)


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
