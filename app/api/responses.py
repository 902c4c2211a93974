"""JSON answers through orjson, and conditional GETs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from pydantic import BaseModel

T = TypeVar("T")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def json_bytes(body: Any) -> bytes:
    """JSON of plain values, schemas and C-contiguous numpy arrays; NaN and infinity become null."""
    return orjson.dumps(body, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)


def paged(found: Sequence[T], limit: int, cursor: Callable[[T], str]) -> tuple[Sequence[T], str | None]:
    """One page of what was found, and what its next one starts after.

    Args:
        found: one more than the limit, if there are so many.
        cursor: names an item; None is answered on the last page.
    """
    return found[:limit], cursor(found[limit - 1]) if len(found) > limit else None


def json_response(
    body: Any, *, status: int = 200, media_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> Response:
    return Response(json_bytes(body), status_code=status, media_type=media_type, headers=dict(headers or {}))


def matches(request: Request, etag: str) -> bool:
    """Whether the client holds this version already."""
    sent = request.headers.get("if-none-match")
    if sent is None:
        return False
    return sent.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in sent.split(","))


def not_modified(etag: str) -> Response:
    return Response(status_code=304, headers={"ETag": etag, "Cache-Control": "no-cache"})


def tagged(body: Any, etag: str) -> Response:
    return json_response(body, headers={"ETag": etag, "Cache-Control": "no-cache"})


def tagged_by_content(request: Request, body: Any) -> Response:
    """An answer whose tag is the digest of its bytes: for small bodies that change without a revision."""
    data = json_bytes(body)
    etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    if matches(request, etag):
        return not_modified(etag)
    return Response(data, media_type="application/json", headers={"ETag": etag, "Cache-Control": "no-cache"})
