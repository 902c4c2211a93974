"""Connections that ask for nothing: bounded in number, time and size, so that those that do ask are answered.

A connection costs memory and a file; a head or a body that never ends costs what has come of it.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import Any, ClassVar, Protocol

from fastapi import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api.problems import problem_of
from app.domain.errors import BodyStalled, ConnectionsFull, HeadTooLarge, ServiceError
from app.settings import Settings

log = logging.getLogger(__name__)

RLIMIT = resource.RLIMIT_NOFILE
FILES_KEPT = 512  # for all but connections: the database, artefacts, engines, libraries
CLEARED_SHARE = 0.05  # of the connections: so many idle ones leave at once when a new one finds no room
HEAD_BYTES_MAX = 64 * 1024  # of a request: its line and its headers
LOOKS = 4  # in the time that a connection may stand still


class Watched(Protocol):
    """A connection, as its guard sees it."""

    heard_s: float  # when its client last sent something, by the loop's clock
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    connections: set[Any]  # all of the server, this one included

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way; half a request's head is none."""

    @property
    def is_silent(self) -> bool:
        """Whether it is idle, and nobody else times it."""

    @property
    def waits_for_body(self) -> bool:
        """Whether the client owes bytes, and nothing but the client keeps them back."""

    def refuse(self, error: ServiceError) -> None:
        """Answer whatever is under way, or will be, with this error, and close."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol; tells its guard of every connection and remembers when it last heard of its client."""

    guard: ClassVar[Guard]
    heard_s: float  # by the loop's clock
    head_bytes = 0  # of a request whose head is not whole yet
    _is_in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.heard_s = self.loop.time()
        self.guard.watch(self)

    def data_received(self, data: bytes) -> None:
        self.heard_s = self.loop.time()
        super().data_received(data)
        if self._is_in_head:
            self.head_bytes += len(data)
            if self.head_bytes > HEAD_BYTES_MAX:
                self.refuse(_head_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self.head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    @property
    def is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_silent(self) -> bool:
        return self.is_idle and self.timeout_keep_alive_task is None  # uvicorn's own, after an answer

    @property
    def waits_for_body(self) -> bool:
        return not self.is_idle and self.cycle.more_body and not self.flow.read_paused

    def refuse(self, error: ServiceError) -> None:
        if self.is_idle or not self.cycle.response_started:
            self.transport.write(_wire(problem_of(error)))
        self.transport.close()


class Guard:
    """The rules for the connections of one server."""

    def __init__(self, connections_max: int, stalled_s: float) -> None:
        self._connections_max = connections_max
        self._stalled_s = stalled_s
        self._is_looking = False

    def watch(self, joined: Watched) -> None:
        """A connection has come: make room for it, or refuse it."""
        if len(joined.connections) > self._connections_max and not self._clear(joined):
            joined.refuse(
                ConnectionsFull(
                    f"{self._connections_max} connections have a request under way, and no more are taken.",
                    hint="Send the request again in a moment, or raise max_connections.",
                )
            )
        if not self._is_looking:
            self._is_looking = True
            joined.loop.call_later(self._stalled_s / LOOKS, self._look, joined)

    def _clear(self, joined: Watched) -> bool:
        """Close the connections that have been idle for longest; whether there was one."""
        idle = sorted((one for one in _all(joined) if one.is_idle and one is not joined), key=lambda one: one.heard_s)
        for one in idle[: max(1, int(self._connections_max * CLEARED_SHARE))]:
            one.transport.close()
            one.connections.discard(one)  # it is counted no more, though its end comes a turn later
        return bool(idle)

    def _look(self, first: Watched) -> None:
        """Close what has stood still for too long; again and again, while there are connections."""
        now_s = first.loop.time()
        for one in _all(first):
            if now_s - one.heard_s < self._stalled_s:
                continue
            if one.is_silent:
                one.transport.close()
            elif one.waits_for_body:
                one.refuse(
                    BodyStalled(
                        f"The rest of the body did not come for {self._stalled_s:g} s.",
                        hint="Send bodies whole; Content-Length must be their length.",
                    )
                )
        self._is_looking = bool(first.connections)
        if self._is_looking:
            first.loop.call_later(self._stalled_s / LOOKS, self._look, first)


def guarded(settings: Settings) -> type[GuardedProtocol]:
    """The protocol for one server, with as many connections as the settings and the system's file limit allow."""
    files = raised_file_limit(settings.max_connections + FILES_KEPT)
    connections_max = min(settings.max_connections, max(1, files - FILES_KEPT))
    if connections_max < settings.max_connections:
        log.warning("the system's limit of open files allows fewer connections", extra={"connections": connections_max})
    return type("Guarded", (GuardedProtocol,), {"guard": Guard(connections_max, settings.stalled_s)})


def raised_file_limit(wanted: int) -> int:
    """Have so many open files allowed, or as many as the system admits; services often start with 1,024.

    Returns:
        `wanted`, or less.
    """
    soft, hard = (wanted if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(RLIMIT))
    if soft < wanted:
        soft = min(hard, wanted)
        resource.setrlimit(RLIMIT, (soft, resource.getrlimit(RLIMIT)[1]))
    return min(soft, wanted)


def _all(one_of_them: Watched) -> list[Watched]:
    return [one for one in one_of_them.connections if isinstance(one, type(one_of_them))]


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(
        f"The request's line and headers are longer than {HEAD_BYTES_MAX >> 10} KiB.", hint="Send data in the body."
    )


def _wire(response: Response) -> bytes:
    lines = [name + b": " + value for name, value in response.raw_headers]
    return STATUS_LINE[response.status_code] + b"\r\n".join([*lines, b"connection: close", b"", bytes(response.body)])
