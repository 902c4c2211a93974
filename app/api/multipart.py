"""Multipart bodies, read as they arrive: each part goes straight to a sink, nothing waits in memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from app.domain.errors import BodyTooLarge, FeatureUnsupported, InvalidRequest, MediaTypeUnsupported, ServiceError

FEED_BYTES = 1 << 20  # hashing and writing happen in a thread, in pieces of about this size
PARTS_MAX = 1000


class Sink(Protocol):
    """Where one part's bytes go."""

    def write(self, chunk: bytes) -> object: ...


OpenPart = Callable[[str, "str | None"], Sink]  # part name, file name → its sink


def media_type(request: Request) -> str:
    """The body's content type without parameters, lower case; empty when none was sent."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def pieces(request: Request, limit_bytes: int, too_large: Callable[[], ServiceError]) -> AsyncIterator[bytes]:
    """The body in pieces of about a MiB.

    Raises:
        ServiceError: what `too_large` makes, when the body is, or says that it will be, over the limit.
        FeatureUnsupported: it is compressed.
        ClientDisconnect: the client hung up.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", ""):
        raise FeatureUnsupported(
            f"The Content-Encoding is {coding[:80]!r}; this body is read as it is.", hint="Send it uncompressed."
        )
    announced = request.headers.get("content-length", "")
    if re.fullmatch(r"[0-9]{1,30}", announced) and int(announced) > limit_bytes:
        raise too_large()
    waiting: list[bytes] = []
    held, total = 0, 0
    async for chunk in request.stream():
        waiting.append(chunk)
        held, total = held + len(chunk), total + len(chunk)
        if total > limit_bytes:
            raise too_large()
        if held >= FEED_BYTES:
            yield b"".join(waiting)
            waiting, held = [], 0
    if held:
        yield b"".join(waiting)


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body, for bodies that must be in memory.

    Raises:
        BodyTooLarge: it is over the limit.
    """
    parts = [piece async for piece in pieces(request, limit_bytes, lambda: body_too_large(limit_bytes))]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def body_too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is larger than {limit_bytes >> 20} MiB.",
        hint="Send less at once, or raise JETFORGE_MAX_BODY_MIB on the device.",
    )


async def read_multipart(
    request: Request, open_part: OpenPart, limit_bytes: int, too_large: Callable[[], ServiceError]
) -> None:
    """Feed every part of a multipart/form-data body to the sink that `open_part` gives for it.

    Raises:
        MediaTypeUnsupported: the body is not multipart/form-data.
        InvalidRequest: it is malformed or ends in the middle.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    if kind.lower() != b"multipart/form-data" or not parameters.get(b"boundary"):
        raise MediaTypeUnsupported(
            f"The content type is {media_type(request) or 'missing'}; multipart/form-data with a boundary is wanted.",
            hint="With curl, use -F name=value and -F file=@path, and no -H Content-Type.",
        )
    reader = _Reader(parameters[b"boundary"], open_part)
    async for piece in pieces(request, limit_bytes, too_large):
        await asyncio.to_thread(reader.feed, piece)
    reader.finish()


class _Reader:
    """python-multipart's callbacks, turned into sinks."""

    def __init__(self, boundary: bytes, open_part: OpenPart) -> None:
        self._open_part = open_part
        self._parts = 0
        self._done = False
        self._field, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._sink: Sink | None = None
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from error

    def feed(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _malformed(str(error)) from error

    def finish(self) -> None:
        if not self._done:
            raise _malformed("it ends before its last boundary")

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise _malformed(f"it has more than {PARTS_MAX} parts")
        self._headers, self._sink = {}, None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, parameters = parse_options_header(self._headers.get(b"content-disposition"))
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            raise _malformed("a part has no name")
        filename = parameters.get(b"filename")
        self._sink = self._open_part(name, None if filename is None else filename.decode("utf-8", "replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        assert self._sink is not None  # the parser reports a part's headers before its data
        self._sink.write(data[start:end])

    def _end(self) -> None:
        self._done = True


def _malformed(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"The multipart body is malformed: {why}.", hint="With curl, use -F name=value and -F file=@path."
    )
