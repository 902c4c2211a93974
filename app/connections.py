"""Connections that make the server wait are ended: slow headers, slow bodies, clients that do not read their answer.

uvicorn itself limits only the pause between two requests. Each connection notes what it waits for; one look a second
over all of them ends those that have waited too long, so that a request pays for no timer.
"""

from __future__ import annotations

import logging
import re
import resource
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.problems import problem, problem_of
from app.domain.errors import HeadersTooLarge, RequestTooSlow, ServiceError
from app.settings import Settings

log = logging.getLogger(__name__)

FILES_KEPT = 512  # for all but connections: the database, artefacts, engines, libraries
_UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:[^\r\n]*", re.IGNORECASE)
BODY_BYTES_MIN = 4096  # that a body must bring in `body_timeout_s`, unless it ends


@dataclass(frozen=True)
class ConnectionLimits:
    header_timeout_s: float
    body_timeout_s: float
    header_bytes_max: int
    connections_max: int = 4096
    busy_poll_s: float = 0  # for the next request of a client that asks at once


class _Phase(Enum):
    HEAD = "the request line and the headers are awaited"
    BODY = "the body is awaited"
    REST = "the request is complete; it is answered, or another one may come"


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with limits on time and on the size of headers."""

    def __init__(self, limits: ConnectionLimits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits
        self._phase = _Phase.HEAD
        self._since_s = time.monotonic()  # when the phase, or the body's present stretch, began
        self._phase_bytes = 0
        self._chunk_bytes = 0  # of the chunk that is being parsed
        self._unread_since_s: float | None = None  # since when the client takes nothing of its answer; None: it does
        self._is_refused = False
        self._unanswered: list[RequestResponseCycle] = []

    def connection_lost(self, exc: Exception | None) -> None:
        self._forsake()
        super().connection_lost(exc)

    def end_if_late(self, now_s: float) -> None:
        """End the connection when it has waited too long for its client."""
        if self._unread_since_s is not None and now_s - self._unread_since_s > self.limits.body_timeout_s:
            self._forsake()
            self.transport.abort()
        elif self._phase is _Phase.HEAD and now_s - self._since_s > self.limits.header_timeout_s:
            self._end_head()
        elif self._phase is _Phase.BODY and now_s - self._since_s > self.limits.body_timeout_s:
            self._end_body(now_s)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._chunk_bytes = len(data)
        if self._phase is _Phase.REST:
            self._enter(_Phase.HEAD)
        elif self._phase is _Phase.HEAD:
            self._phase_bytes += len(data)
        super().data_received(_without_upgrade(data) if self._phase is _Phase.HEAD else data)
        if self._phase is _Phase.HEAD and self._phase_bytes > self.limits.header_bytes_max:
            self._refuse_head()

    def on_message_begin(self) -> None:
        if self._phase is _Phase.REST:  # pipelined, in the chunk that ended the request before
            self._enter(_Phase.HEAD)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._phase_bytes > self.limits.header_bytes_max and self._head_bytes() > self.limits.header_bytes_max:
            self._refuse_head()
            return
        self._enter(_Phase.BODY)
        super().on_headers_complete()
        self._unanswered = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        if not self._is_refused:
            self._phase_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_refused:
            self._phase = _Phase.REST
            super().on_message_complete()

    def pause_writing(self) -> None:
        self._unread_since_s = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread_since_s = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """The parser's refusal, in the form of all others."""
        self._refuse(problem(400, "http_error", "Bad Request", msg, "Send HTTP/1.1."))

    def _unsupported_upgrade_warning(self) -> None:
        """An offer that was not found in time: the parser takes what follows for another protocol's."""
        self._refuse(problem(400, "http_error", "Bad Request", "Upgrade is not possible here.", "Send HTTP/1.1."))

    def rest(self) -> None:
        """Another reader has the connection: what was awaited here is not."""
        self._phase = _Phase.REST

    def refuse_slow_body(self) -> None:
        """Answer that the body brings too little, and close."""
        self._refuse_slow(
            f"The body brought less than {BODY_BYTES_MIN} bytes in {self.limits.body_timeout_s:g} seconds."
        )

    def refuse(self, error: ServiceError) -> None:
        """Answer with this error, unless an answer is under way, and close."""
        self._refuse(problem_of(error))

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way; half a request's head is none."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def _forsake(self) -> None:
        """Tell every request of this connection that its client has gone.

        uvicorn tells the one that came last only; of pipelined requests an earlier one would go on writing, and fail.
        """
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._since_s = time.monotonic()
        self._phase_bytes = self._chunk_bytes if phase is _Phase.HEAD else 0

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)

    def _refuse_head(self) -> None:
        limit_kib = self.limits.header_bytes_max >> 10
        error = HeadersTooLarge(
            f"The request line and the headers are larger than {limit_kib} KiB.",
            hint="Send what is long in the body, or raise JETFORGE_MAX_HEADER_KIB on the device.",
        )
        self.refuse(error)

    def _end_head(self) -> None:
        if not self._phase_bytes:  # nothing was asked
            self.transport.close()
            return
        self._refuse_slow(f"The headers did not arrive within {self.limits.header_timeout_s:g} seconds.")

    def _end_body(self, now_s: float) -> None:
        if self.flow.read_paused or self._phase_bytes >= BODY_BYTES_MIN:  # paused: it waits for us
            self._since_s, self._phase_bytes = now_s, 0
            return
        self.refuse_slow_body()

    def _refuse_slow(self, detail: str) -> None:
        error: ServiceError = RequestTooSlow(detail, hint="Send it again over a connection that holds.")
        self.refuse(error)

    def _refuse(self, response: Response) -> None:
        """Answer, unless an answer is under way, and close."""
        if self.transport.is_closing():
            return
        self._is_refused = True
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            fields = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
            head = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
            self.transport.write(STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body))
        self._forsake()
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """What begins with a head, without the offer to go on with another protocol, which a server may ignore.

    httptools would skip the body and take it for that protocol's. Java's HttpClient offers HTTP/2 with every request.
    """
    if b"pgrade" not in data and b"PGRADE" not in data:
        return data
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"", head) + end + rest


def limits_of(settings: Settings) -> ConnectionLimits:
    """The limits of the settings, with as many connections as the system's limit of open files allows."""
    files = raised_file_limit(settings.max_connections + FILES_KEPT)
    connections_max = min(settings.max_connections, max(1, files - FILES_KEPT))
    if connections_max < settings.max_connections:
        log.warning("the system's limit of open files allows fewer connections", extra={"connections": connections_max})
    return ConnectionLimits(
        settings.header_timeout_s,
        settings.body_timeout_s,
        settings.max_header_kib << 10,
        connections_max,
        settings.busy_poll_us / 1e6,
    )


def raised_file_limit(wanted: int) -> int:
    """Have so many open files allowed, or as many as the system admits; services often start with 1,024.

    Returns:
        `wanted`, or less.
    """
    limit = resource.RLIMIT_NOFILE
    soft, hard = (wanted if found == resource.RLIM_INFINITY else found for found in resource.getrlimit(limit))
    if soft < wanted:
        soft = min(hard, wanted)
        resource.setrlimit(limit, (soft, resource.getrlimit(limit)[1]))
    return min(soft, wanted)
