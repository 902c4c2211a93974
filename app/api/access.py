"""Every HTTP request passes the door here. Plain ASGI: an inference request pays for one call, not for a framework."""

from __future__ import annotations

import asyncio
import logging
from contextlib import nullcontext
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.audit import AuditLog
from app.access.door import ANONYMOUS, Door
from app.access.routes import Rule, rule_of
from app.api.headers import with_page_headers
from app.api.multipart import body_too_large
from app.api.problems import CLIENT_CLOSED, problem_of
from app.domain.access import Visitor
from app.domain.errors import Forbidden, ServiceError

log = logging.getLogger(__name__)

POLICY_VIOLATION = 1008  # close code of WebSocket


class AccessMiddleware:
    """Lets in what `Door.authorised` admits; the visitor is in the scope, under "visitor"."""

    def __init__(self, app: ASGIApp, door: Door, audit: AuditLog) -> None:
        self._app = app
        self._door = door
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        # A WebSocket has no method; no rule names it, so that it needs the role admin.
        method, path, client = scope.get("method", "WEBSOCKET"), scope["path"], _client(scope)
        rule = rule_of(method, path)
        try:
            visitor = self._door.authorised(method, path, scope["headers"], client)
            with self._door.upload_slot(visitor, client) if rule.uploads else nullcontext():
                scope["visitor"] = visitor
                await self._admitted(rule, visitor, scope, receive, send)
        except ServiceError as error:
            await self._refuse(error, rule, scope, receive, send)

    async def _admitted(self, rule: Rule, visitor: Visitor, scope: Scope, receive: Receive, send: Send) -> None:
        if visitor.max_body_bytes is not None:
            receive = _limited(receive, scope, visitor.max_body_bytes)
        if rule.method == "GET":
            send = with_page_headers(send, scope["path"])
        if not rule.changes:
            await self._app(scope, receive, send)
            return
        noted = _Noted(send, self._note, visitor.name, visitor.key_id, scope)
        try:
            await self._app(scope, receive, noted)
        finally:
            await noted.finish(CLIENT_CLOSED)

    async def _refuse(self, error: ServiceError, rule: Rule, scope: Scope, receive: Receive, send: Send) -> None:
        if rule.changes and isinstance(error, Forbidden):  # without a key: anybody could fill the log
            noted = _Noted(send, self._note, error.who or ANONYMOUS, None, scope)
            await noted.finish(403)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        await problem_of(error)(scope, receive, send)

    async def _note(self, *entry: Any) -> None:
        """Write into the audit log. A disk that is full must not stop what would free it."""
        try:
            await asyncio.to_thread(self._audit.write, *entry)
        except OSError as error:
            log.error("the audit log cannot be written", extra={"reason": error.strerror})


class _Noted:
    """A `send` that writes the audit log before the client learns how the request ended."""

    def __init__(self, send: Send, note: Any, who: str, key_id: str | None, scope: Scope) -> None:
        self._send = send
        self._note = note
        self._entry = (who, key_id, _client(scope), scope.get("method", "WEBSOCKET"), scope["path"])
        self._is_done = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            made = next((value.decode() for name, value in message["headers"] if name == b"location"), None)
            await self.finish(message["status"], made)
        await self._send(message)

    async def finish(self, status: int, made: str | None = None) -> None:
        """Write the entry, unless it is written."""
        if not self._is_done:
            self._is_done = True
            await self._note(*self._entry, status, made)


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _limited(receive: Receive, scope: Scope, limit_bytes: int) -> Receive:
    """A `receive` that raises BodyTooLarge when the body is, or says that it will be, over the key's limit."""
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if announced.isdigit() and int(announced[:30]) > limit_bytes:
        raise body_too_large(limit_bytes)
    total = 0

    async def receiving() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit_bytes:
            raise body_too_large(limit_bytes)
        return message

    return receiving
