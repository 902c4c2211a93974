"""Who may call: every gRPC method passes the same door as the REST request that does the same."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import unquote

from app.access.audit import AuditLog
from app.access.door import Door
from app.access.routes import rule_of
from app.domain.access import Visitor
from app.domain.errors import BodyTooLarge

log = logging.getLogger(__name__)

_ANY = "model"  # a rule is the same for every model
REST: dict[str, tuple[str, str]] = {
    "ServerLive": ("GET", "/v2/health/live"),
    "ServerReady": ("GET", "/v2/health/ready"),
    "ServerMetadata": ("GET", "/v2"),
    "ModelReady": ("GET", f"/v2/models/{_ANY}/ready"),
    "ModelMetadata": ("GET", f"/v2/models/{_ANY}"),
    "ModelConfig": ("GET", f"/v2/models/{_ANY}/config"),
    "ModelStatistics": ("GET", f"/v2/models/{_ANY}/stats"),
    "ModelInfer": ("POST", f"/v2/models/{_ANY}/infer"),
    "ModelStreamInfer": ("POST", f"/v2/models/{_ANY}/infer"),
    "RepositoryIndex": ("POST", "/v2/repository/index"),
    "RepositoryModelLoad": ("POST", f"/v2/repository/models/{_ANY}/load"),
    "RepositoryModelUnload": ("POST", f"/v2/repository/models/{_ANY}/unload"),
}


class Entry:
    """Asks the door about calls, and notes in the audit log those that change something."""

    def __init__(self, door: Door, audit: AuditLog) -> None:
        self._door = door
        self._audit = audit

    def admitted(self, name: str, context: Any) -> Visitor:
        """Who calls this method, if they may: a key travels as `authorization` or `x-api-key` in the metadata.

        Raises:
            What `Door.authorised` raises.
        """
        method, path = REST[name]
        headers = [(_bytes(key).lower(), _bytes(value)) for key, value in context.invocation_metadata() or ()]
        return self._door.authorised(method, path, headers, peer_of(context))

    def check_size(self, visitor: Visitor, size_bytes: int) -> None:
        """Refuse a message that is over the limit of its key.

        Raises:
            BodyTooLarge: it is.
        """
        limit_bytes = visitor.max_body_bytes
        if limit_bytes is not None and size_bytes > limit_bytes:
            raise BodyTooLarge(
                f"The message has {size_bytes >> 20} MiB; this key may send {limit_bytes >> 20} MiB.",
                hint="Send less at once, or use a key with a higher limit.",
            )

    async def note(self, name: str, visitor: Visitor, context: Any, *, is_done: bool) -> None:
        """Write the call into the audit log, if it is one that changes something."""
        if not rule_of(*REST[name]).changes:
            return
        entry = (visitor.name, visitor.key_id, peer_of(context), "GRPC", name, 200 if is_done else 500)
        try:
            await asyncio.to_thread(self._audit.write, *entry)
        except OSError as error:
            log.error("the audit log cannot be written", extra={"reason": error.strerror})


def peer_of(context: Any) -> str:
    """The caller's network address; "" when it has none. grpc writes ipv4:127.0.0.1:80, ipv6:%5B::1%5D:80."""
    kind, _, rest = unquote(context.peer()).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
