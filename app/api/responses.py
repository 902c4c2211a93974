"""JSON answers through orjson, and conditional GETs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import orjson
from fastapi import Request, Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from app.domain.tensors import Tensor

Piece: TypeAlias = "bytes | memoryview"

JOINED_BYTES = 1 << 16  # an answer up to this size is sent in one piece

T = TypeVar("T")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def json_bytes(body: Any) -> bytes:
    """JSON of plain values, dataclasses, schemas and C-contiguous numpy arrays; NaN and infinity become null."""
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


class TensorResponse(Response):
    """An answer in several pieces, of which the large ones are handed on as they lie in memory."""

    def __init__(self, parts: Sequence[Piece], media_type: str, headers: Mapping[str, str]) -> None:
        # Not starlette's constructor: it takes 4 µs, and joins what need not be joined.
        self.status_code = 200
        self.background = None
        self.body = b""
        self.parts = _gathered(parts)
        length = sum(len(part) for part in self.parts)
        self.raw_headers = _raw_headers(length, media_type, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self.parts[:-1]:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": self.parts[-1]})


class Written(NamedTuple):
    """An answer as it goes over the wire, but for what all answers have."""

    status: int
    lines: bytes  # its headers
    parts: Sequence[Piece]


def written(response: Response) -> Written:
    """A response that has its body already. Raises RuntimeError where `header_lines` does."""
    return Written(response.status_code, header_lines(response.raw_headers), [response.body])


@lru_cache(maxsize=256)
def tensor_lines(length: int, media_type: str, headers: tuple[tuple[str, str], ...]) -> bytes:
    """The headers of a `TensorResponse` of so many bytes as lines; clients ask again for what they asked for."""
    return header_lines(_raw_headers(length, media_type, dict(headers)))


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The headers as they go over the wire.

    Raises:
        RuntimeError: a value has more than one line.
    """
    lines: list[bytes] = []
    for name, value in headers:
        if b"\n" in value or b"\r" in value:
            raise RuntimeError("A header's value has more than one line.")
        lines += (name, b": ", value, b"\r\n")
    return b"".join(lines)


def _raw_headers(length: int, media_type: str, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-length", b"%d" % length),
        (b"content-type", media_type.encode("latin-1")),
        *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()),
    ]


def _gathered(parts: Sequence[Piece]) -> list[Piece]:
    """The pieces; all in one where together they are small."""
    if len(parts) == 1 or sum(len(part) for part in parts) <= JOINED_BYTES:
        return [parts[0] if len(parts) == 1 else b"".join(parts)]
    return [part for part in parts if len(part)]


def raw(tensor: Tensor) -> Piece:
    """A tensor's bytes, C order; not copied where they lie so already."""
    if tensor.size == 0:
        return b""
    return np.ascontiguousarray(tensor).data.cast("B")


def add_server_timing(response: Response, timings_ms: Mapping[str, float], **more_ms: float) -> None:
    """Tell a request's times in its answer, as `Server-Timing` has them. The parts overlap nowhere but in the total."""
    times = {**{name: ms for name, ms in timings_ms.items() if name != "total"}}
    times.update(
        {name.removesuffix("_ms"): times.get(name.removesuffix("_ms"), 0.0) + ms for name, ms in more_ms.items()}
    )
    times["total"] = timings_ms["total"] + sum(more_ms.values())
    value = ", ".join(f"{name};dur={ms:.3f}" for name, ms in times.items())
    response.raw_headers.append((b"server-timing", value.encode("ascii")))


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
