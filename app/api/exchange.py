"""Exchange: one request that is answered without uvicorn, through the same ASGI application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.types import Message

from app.api.heads import Plan
from app.api.responses import JOINED_BYTES, header_lines
from app.domain.errors import BodiesFull

if TYPE_CHECKING:
    from app.api.connection import Connection

log = logging.getLogger(__name__)

PLAN, BODY = "jetforge.plan", "jetforge.body"  # in the scope of such a request
ALIGNMENT = 16  # bytes; numpy's memory is aligned to it, and no dtype needs more
EAGER_BYTES = 1 << 20  # of a body that is received before anybody asks for it
UNCOUNTED_BYTES = 1 << 14  # of a body that needs no room of its own: as much as one read of the connection


class Exchange:
    """Receives a body into one aligned buffer, runs the application, writes its answer."""

    # Of the class, until they change: most never do, and there is one of these for every request.
    room: memoryview | None = None  # where the next bytes of the body go; None: they do not
    _body: memoryview | None = None
    _early = b""  # of a large body, before somebody asked for it
    _is_skipping = False  # the answer is written, the rest of the body is thrown away
    _task: asyncio.Task[None] | None = None
    _withdraw: Callable[[], None] | None = None  # of a request on the fast path; leads back here
    was_fast = False  # the fast path has answered
    _asked: asyncio.Future[None] | None = None  # done when the body is complete
    _writable: asyncio.Future[None] | None = None
    _is_gone = False
    _start: Message | None = None
    _has_length = False  # the answer's was announced
    _is_finished = False
    _held_bytes = 0  # of the room for bodies

    def __init__(self, connection: Connection, plan: Plan) -> None:
        head = plan.head
        self._connection = connection
        self._plan = plan
        self._missing_bytes = head.body_bytes  # not yet received
        self._owes_100 = b"expect" in head.headers
        self._keeps_alive = head.keeps_alive

    def begin(self, data: memoryview) -> memoryview:
        """Take what came with the head; returns what is not the request's any more."""
        own, rest = data[: self._missing_bytes], data[self._missing_bytes :]
        if self._has_begun_eagerly():
            if self._owes_100:
                self._continue_100()
            self._open_room(own)
            if not self._missing_bytes:
                self._run()
        else:
            self._early = bytes(own)
            self._missing_bytes -= len(own)
            self._connection.pause()
            self._run()
        return rest

    def filled(self, nbytes: int) -> None:
        """So many bytes of the body have come into `room`."""
        assert self.room is not None
        self._missing_bytes -= nbytes
        if self._is_skipping:
            self._skip()
            return
        self.room = self.room[nbytes:] if self._missing_bytes else None
        if self._missing_bytes:
            return
        if self._task is None and self._withdraw is None:
            self._run()
        elif self._asked is not None and not self._asked.done():
            self._asked.set_result(None)

    def drained(self) -> None:
        """The client has taken what was written."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def abandon(self) -> None:
        """The connection is lost: nobody waits for the answer."""
        self._is_gone = True
        self.room = None
        self._give_back()
        if self._task is not None:
            self._task.cancel()
        elif self._withdraw is not None:
            self._withdraw()

    @property
    def waits_for_client(self) -> bool:
        return self.room is not None

    @property
    def ref(self) -> str:
        """The engine, as the client wrote it."""
        return self._plan.ref

    @property
    def received(self) -> bytes:
        """Head and body, as far as they have come; for a body that is not large."""
        assert self._body is not None
        return self._plan.head.raw + bytes(self._body[: len(self._body) - self._missing_bytes])

    def try_again(self) -> bool:
        """Whether the fast path takes the request this time."""
        assert self._plan.begin is not None and self._body is not None
        self._withdraw = self._plan.begin(self._body.toreadonly(), self._connection.client_address, self._reply)
        return self._withdraw is not None

    # --- what the application uses ---------------------------------------------------------------------------------

    async def body(self) -> memoryview:
        """The whole body, aligned as its plan says, read-only. A client that hangs up cancels its request.

        Raises:
            BodiesFull: there is no room for it.
        """
        if self._body is None:
            self._take_room()
            early, self._early = self._early, b""
            self._missing_bytes += len(early)
            self._continue_100()
            self._open_room(memoryview(early))
            self._connection.resume()
        assert self._body is not None
        if self._missing_bytes:
            self._asked = self._connection.loop.create_future()
            await self._asked
        return self._body.toreadonly()

    async def receive(self) -> Message:
        if self._is_gone or self._is_finished:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": bytes(await self.body()), "more_body": False}

    async def send(self, message: Message) -> None:
        if self._is_gone:
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        parts = [message.get("body", b"")]
        if self._start is not None:
            parts.insert(0, self._head(self._start["status"], self._start["headers"]))
            self._start = None
        self._connection.transport.writelines([part for part in parts if len(part)])
        if not message.get("more_body", False):
            self._finish()
        elif self._connection.is_full:
            self._writable = self._connection.loop.create_future()
            await self._writable

    # --- inside ----------------------------------------------------------------------------------------------------

    def _has_begun_eagerly(self) -> bool:
        """Whether the body is received before anybody asks for it; then it has its room."""
        if self._plan.head.body_bytes > EAGER_BYTES:
            return False
        try:
            self._take_room()
        except BodiesFull:  # which whoever asks for it is told
            return False
        return True

    def _take_room(self) -> None:
        nbytes = self._plan.head.body_bytes
        if nbytes > UNCOUNTED_BYTES:
            self._connection.front.bodies.take(nbytes)
            self._held_bytes = nbytes

    def _give_back(self) -> None:
        if self._held_bytes:
            self._connection.front.bodies.give_back(self._held_bytes)
            self._held_bytes = 0

    def _open_room(self, first: memoryview) -> None:
        self._body = aligned(self._plan.head.body_bytes, self._plan.offset)
        self._body[: len(first)] = first
        self._missing_bytes -= len(first)
        self.room = self._body[len(first) :] if self._missing_bytes else None

    def _continue_100(self) -> None:
        if self._owes_100:
            self._owes_100 = False
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _run(self) -> None:
        is_there = self._body is not None and not self._missing_bytes
        if is_there and self._plan.begin is not None and self.try_again():
            return
        if not self._connection.takes_long_way(self):
            self._task = task = self._connection.loop.create_task(self._served())
            self._connection.state.tasks.add(task)
            task.add_done_callback(self._connection.state.tasks.discard)

    def _reply(self, status: int, lines: bytes, parts: Sequence[bytes | memoryview]) -> None:
        """The whole answer of a request on the fast path."""
        self._withdraw, self.was_fast = None, True
        if self._is_gone:
            return
        connection = self._connection
        pieces = [connection.opening(status), lines, self._ending(), *parts]
        if sum(map(len, parts)) <= JOINED_BYTES:
            connection.transport.write(b"".join(pieces))
        else:
            connection.transport.writelines(pieces)
        self._finish()

    async def _served(self) -> None:
        try:
            await self._connection.app(self._scope(), self.receive, self.send)
        except Exception:
            log.exception("the application failed on a request")  # it has answered, unless its answer had begun
            self._connection.transport.close()
        if not self._is_finished:
            self._connection.transport.close()

    def _scope(self) -> dict[str, Any]:
        head = self._plan.head
        scheme, client, server = self._connection.addresses
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": scheme,
            "path": head.path,
            "raw_path": head.path.encode(),
            "query_string": head.query,
            "root_path": "",
            "headers": list(head.lines),
            "client": client,
            "server": server,
            "state": self._connection.app_state.copy(),
            PLAN: self._plan,
            BODY: self.body,
        }

    def _head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        for name, value in headers:
            if name == b"content-length":
                self._has_length = True
            elif name == b"connection" and value.lower() == b"close":
                self._keeps_alive = False
        if not self._has_length or self._owes_100:
            self._keeps_alive = False  # the end of the connection ends the answer; the body will not come
        return self._connection.opening(status) + header_lines(headers) + self._ending()

    def _ending(self) -> bytes:
        """The end of the answer's head."""
        return b"\r\n" if self._keeps_alive and not self._connection.is_closing else b"connection: close\r\n\r\n"

    def _finish(self) -> None:
        self._is_finished = True
        self._give_back()
        self._withdraw = None  # it leads back here: the request is to be freed now, not by the cycle collector
        if self._missing_bytes and not self._owes_100:
            self._skip()
        else:
            self._connection.ended(keeps_alive=self._keeps_alive)

    def _skip(self) -> None:
        """Read what is left of a body that nobody wanted: closing at once could cost the client the answer."""
        self._is_skipping = True
        if self._missing_bytes:
            self.room = memoryview(bytearray(min(self._missing_bytes, 1 << 16)))
            self._connection.resume()
        else:
            self.room = None
            self._connection.ended(keeps_alive=self._keeps_alive)


def aligned(size: int, offset: int) -> memoryview:
    """A new buffer whose byte `offset` is aligned; its bytes are not set."""
    start = -offset % ALIGNMENT
    return np.empty(size + start, np.uint8).data[start:]
