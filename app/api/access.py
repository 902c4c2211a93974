"""Every HTTP request passes the door here. Plain ASGI: an inference request pays for one call, not for a framework."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.door import Door
from app.api.problems import problem_of
from app.domain.errors import ServiceError

POLICY_VIOLATION = 1008  # close code of WebSocket


class AccessMiddleware:
    """Lets in what `Door.authorised` admits; the visitor is in the scope, under "visitor"."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            # A WebSocket has no method; no rule names it, so that it needs the role admin.
            method = scope.get("method", "WEBSOCKET")
            client = scope.get("client")
            visitor = self._door.authorised(method, scope["path"], scope["headers"], client[0] if client else "")
        except ServiceError as error:
            await _refuse(error, scope, receive, send)
            return
        scope["visitor"] = visitor
        await self._app(scope, receive, send)


async def _refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        return
    await problem_of(error)(scope, receive, send)
