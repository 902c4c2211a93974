"""Observed: gives every request its id, counts it, and writes it to the log when that is wanted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.api.problems import CLIENT_CLOSED
from app.api.request_ids import HEADER, request_id
from app.serving.distribution import Distribution

log = logging.getLogger(__name__)

ROUTE = "jetforge.route"  # scope key: the route of a request that is answered before routing
UNMATCHED = "unmatched"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestCounts:
    """Requests by route, and how long they took. Used on the event loop only."""

    def __init__(self) -> None:
        self.answered: dict[tuple[str, str, int], int] = {}  # by route template, method and status
        self.seconds: dict[str, Distribution] = {}  # by route template
        self.replicas = 0  # processes that answer beside this one
        self.replica_connections = 0

    def add(self, route: str, method: str, status: int, seconds: float) -> None:
        key = (route, method if method in _METHODS else "OTHER", status)
        self.answered[key] = self.answered.get(key, 0) + 1
        taken = self.seconds.get(route)
        if taken is None:
            taken = self.seconds[route] = Distribution()
        taken.add(seconds)

    def taken(self) -> RequestCounts:
        """Everything counted since the last time; it is counted anew from here on."""
        taken = RequestCounts()
        taken.answered, self.answered = self.answered, {}
        taken.seconds, self.seconds = self.seconds, {}
        return taken

    def merge(self, other: RequestCounts) -> None:
        """Count what another process has answered."""
        for key, count in other.answered.items():
            self.answered[key] = self.answered.get(key, 0) + count
        for route, seconds in other.seconds.items():
            self.seconds.setdefault(route, Distribution()).merge(seconds)


class Observed:
    """Plain ASGI: a request costs a few microseconds, and bodies pass untouched."""

    def __init__(self, app: ASGIApp, counts: RequestCounts, *, is_logged: bool) -> None:
        self._app = app
        self._counts = counts
        self._is_logged = is_logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        name = request_id(_sent(scope))
        header = (HEADER, name.encode())
        logs.request_id.set(name)  # for this task and what it starts; the server makes a task for each request
        status = 500  # what an exception that passes here is answered with

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except asyncio.CancelledError:
            status = CLIENT_CLOSED
            raise
        finally:
            seconds = time.perf_counter() - started_s
            self._counts.add(route_of(scope), scope["method"], status, seconds)
            if self._is_logged:
                _write(scope, status, seconds)


def route_of(scope: MutableMapping[str, Any]) -> str:
    """The route's template, so that counts stay few whatever addresses are asked for."""
    if known := scope.get(ROUTE):
        return str(known)
    return getattr(scope.get("route"), "path", UNMATCHED)


def _sent(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == HEADER:
            return bytes(value)
    return None


def _write(scope: Scope, status: int, seconds: float) -> None:
    named = scope.get("path_params", {})
    fields = {
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "ms": round(seconds * 1e3, 3),
        "job": named.get("job_id"),
        "engine": named.get("ref") or named.get("model"),
    }
    log.info("request", extra={name: value for name, value in fields.items() if value is not None})
