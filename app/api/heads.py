"""Heads: which requests are answered off the beaten track, known by the bytes of their heads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httptools
from starlette.responses import Response
from starlette.types import Scope

HEAD_BYTES_MAX = 1 << 14
_KEPT_BYTES_MAX = 1 << 12  # a client repeats its head with every request, if it is not a long one
_KEPT_MAX = 512
_STARTS = (b"POST /infer/", b"POST /v2/models/")
# Whoever sends these wants something that is uvicorn's to do.
_FOREIGN = (
    *(b"transfer-encoding", b"upgrade", b"http2-settings", b"trailer", b"te"),
    *(b"x-forwarded-for", b"x-forwarded-proto"),  # a proxy's: uvicorn knows whose to believe
)


@dataclass(frozen=True)
class Head:
    """A request's first part, as far as it is of a kind that can be taken."""

    raw: bytes  # as it came
    path: str
    query: bytes
    headers: dict[bytes, bytes]  # by name in lower case; none of them came twice
    lines: list[tuple[bytes, bytes]]
    body_bytes: int  # at least 1
    keeps_alive: bool


# status; headers as lines, their length among them and nothing of the connection; body
Reply = Callable[[int, bytes, "Sequence[bytes | memoryview]"], None]
# body, client's address, where the answer goes → how to withdraw; None: not begun. It never replies before it returns.
Begin = Callable[[memoryview, str, Reply], "Callable[[], None] | None"]


@dataclass(frozen=True)
class Plan:
    """How every request with a certain head is answered."""

    head: Head
    ref: str  # the engine, as the client writes it
    offset: int  # the body's byte from which on its address is to be aligned
    is_known: Callable[[], bool]  # the engine has been seen: what else there is to say is the router's business
    answer: Callable[[Scope], Awaitable[Response]]  # of `app.api.shortcut`; errors are answers too
    begin: Begin | None = None  # of `app.api.fast_path`, tried first where the whole body is there; None: in vain


Planner = Callable[[Head], "Plan | None"]


class Heads:
    """Plans by the bytes of a head."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._plans: dict[bytes, Plan | None] = {}

    def plan(self, head: bytes) -> Plan | None:
        """How such a request is answered here; None: it is uvicorn's."""
        if not head.startswith(_STARTS):
            return None
        try:
            plan = self._plans[head]
        except KeyError:
            plan = self._made(head)
        return plan if plan is not None and plan.is_known() else None

    def _made(self, data: bytes) -> Plan | None:
        head = parsed(data)
        plan = self._planner(head) if head is not None else None
        if len(data) <= _KEPT_BYTES_MAX:
            if len(self._plans) >= _KEPT_MAX:
                self._plans.clear()
            self._plans[data] = plan
        return plan


def parsed(data: bytes) -> Head | None:
    """The head of an HTTP/1.1 POST that announces a body of known length; None for every other, and where it is
    malformed: uvicorn's parser, which is the same, then says so."""
    reader = _Reader()
    try:
        parser = httptools.HttpRequestParser(reader)
        parser.feed_data(data)
        url = httptools.parse_url(reader.url)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    headers = dict(reader.lines)
    length = headers.get(b"content-length", b"")
    if (
        not reader.is_complete
        or len(headers) != len(reader.lines)
        or any(name in headers for name in _FOREIGN)
        or not length.isdigit()
        or len(length) > 15
        or int(length) == 0
        or parser.get_http_version() != "1.1"
        or b"%" in url.path
    ):
        return None
    return Head(
        data, url.path.decode("ascii"), url.query or b"", headers, reader.lines, int(length), parser.should_keep_alive()
    )


class _Reader:
    """The parser's callbacks."""

    def __init__(self) -> None:
        self.url = b""
        self.lines: list[tuple[bytes, bytes]] = []
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.lines.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.is_complete = True
