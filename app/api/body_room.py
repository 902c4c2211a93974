"""BodyRoom: how much memory the bodies of requests under way take together.

`max_body_mib` limits each of them. Some dozens of large ones at once, or of clients that begin a body and do not go on,
would still take all that a small device has, and its system would end the service with every engine in it.
"""

from __future__ import annotations

import threading
from types import TracebackType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.exchange import BODY
from app.domain.errors import BodiesFull

HELD_PATHS = ("/infer/", "/v2/models/")  # uploads go to the disk as they come, and all other bodies are small


class BodyRoom:
    """Counts bytes. Any thread may take some."""

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int, own_bytes: int = 0) -> None:
        """Hold so much more, beside what the same request holds already.

        A body that is there alone always has room, however little there is.

        Raises:
            BodiesFull: the bodies of others leave too little.
        """
        with self._lock:
            others_bytes = self.held_bytes - own_bytes
            if not others_bytes or self.held_bytes + nbytes <= self.limit_bytes:
                self.held_bytes += nbytes
                return
        raise BodiesFull(
            f"The bodies of other requests hold {others_bytes >> 20} MiB; this one wants"
            f" {(own_bytes + nbytes) >> 20} MiB, of {int(self.limit_bytes) >> 20} MiB for all.",
            hint="Send it again in a moment, send less at once, or raise JETFORGE_BODIES_MIB on the device.",
        )

    def give_back(self, nbytes: int) -> None:
        with self._lock:
            self.held_bytes -= nbytes


class Holding:
    """What one request has taken; given back at the end of the block."""

    def __init__(self, room: BodyRoom) -> None:
        self.held_bytes = 0
        self._room = room
        self._lock = threading.Lock()
        self._is_over = False

    def take(self, nbytes: int) -> None:
        """As `BodyRoom.take`; a thread that goes on for a request that has ended is refused as well."""
        with self._lock:
            if self._is_over:
                raise BodiesFull("The request has ended.", hint="Send it again.")
            self._room.take(nbytes, self.held_bytes)
            self.held_bytes += nbytes

    def __enter__(self) -> Holding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_over = True
            self._room.give_back(self.held_bytes)
            self.held_bytes = 0


class HeldBodies:
    """Middleware: inference bodies that uvicorn receives take their room as they come."""

    def __init__(self, app: ASGIApp, room: BodyRoom) -> None:
        self._app = app
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or BODY in scope or not scope["path"].startswith(HELD_PATHS):
            await self._app(scope, receive, send)
            return
        with Holding(self._room) as holding:

            async def held() -> Message:
                message = await receive()
                holding.take(len(message.get("body", b"")))
                return message

            await self._app(scope, held, send)
