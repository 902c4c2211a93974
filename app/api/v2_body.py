"""Bodies of inference requests: received in one aligned piece, inflated within limits, deflated when asked."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from starlette.requests import Request

from app.api.body_room import Holding
from app.api.exchange import BODY
from app.api.multipart import body_too_large
from app.domain.errors import FeatureUnsupported, InvalidRequest

ALIGNMENT = 64  # bytes; of a cache line, and enough for every dtype
PACKED_BYTES, INFLATED_BYTES = 1 << 16, 1 << 20  # at a time
DEFLATE_LEVEL = 1  # tensors hardly shrink further, and every level costs time
_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # deflate means zlib's format in HTTP (RFC 9110)
CODINGS = ", ".join(_WINDOW_BITS)


async def read_aligned(request: Request, limit_bytes: int, offset: int) -> memoryview:
    """The whole body, placed so that its byte `offset` has an address at which any tensor may begin.

    The engine can then read the first tensor where it lies. The one copy is the joining of the pieces.

    Raises:
        BodyTooLarge: it is over the limit.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise body_too_large(limit_bytes)
    if BODY in request.scope:  # received in place already, or now
        whole: memoryview = await request.scope[BODY]()
        return whole
    pieces: list[bytes] = []
    total = 0
    async for piece in request.stream():
        total += len(piece)
        if total > limit_bytes:
            raise body_too_large(limit_bytes)
        pieces.append(piece)
    return placed(pieces, total, offset)


def placed(pieces: Sequence[bytes], total: int, offset: int) -> memoryview:
    """The pieces in one buffer whose byte `offset` is aligned; read-only.

    Args:
        total: length of all pieces.
    """
    room = np.empty(total + ALIGNMENT, np.uint8)
    start = -(room.ctypes.data + offset) % ALIGNMENT
    body = room.data[start : start + total]
    at = 0
    for piece in pieces:
        body[at : at + len(piece)] = piece
        at += len(piece)
    return body.toreadonly()


def coding_of(headers: Mapping[str, str]) -> str:
    """The Content-Encoding of a body, lower case; `identity` where none is named."""
    return headers.get("content-encoding", "").strip().lower() or "identity"


def inflated(body: memoryview, coding: str, limit_bytes: int, holding: Holding) -> memoryview:
    """Undo a Content-Encoding, never to more than the limit.

    Args:
        holding: takes room for what comes out, as it comes.

    Raises:
        BodiesFull: the bodies of other requests leave no room for it.
        FeatureUnsupported: another coding than gzip and deflate.
        InvalidRequest: damaged, truncated, or followed by something else.
        BodyTooLarge: it inflates to more than the limit.
    """
    if coding not in _WINDOW_BITS:
        raise FeatureUnsupported(
            f"The Content-Encoding is {coding[:80]!r}; {CODINGS} are read.", hint="Send the body uncompressed."
        )
    inflater = zlib.decompressobj(_WINDOW_BITS[coding])
    data = bytearray()
    left = body
    try:
        while len(left) and not inflater.eof:
            packed, left = left[:PACKED_BYTES], left[PACKED_BYTES:]
            piece = inflater.decompress(packed, INFLATED_BYTES)
            while piece:
                holding.take(len(piece))
                data += piece
                if len(data) > limit_bytes:
                    raise body_too_large(limit_bytes)
                piece = inflater.decompress(inflater.unconsumed_tail, INFLATED_BYTES)
    except zlib.error as error:
        raise _damaged(coding, "damaged") from error
    if not inflater.eof:
        raise _damaged(coding, "truncated")
    if unused_bytes := len(inflater.unused_data) + len(left):
        raise _damaged(coding, f"followed by {unused_bytes} other bytes")
    return memoryview(data).toreadonly()


def wanted_coding(accept_encoding: str) -> str | None:
    """The coding that the client asks for: the one that it names.

    Naming several is what HTTP libraries do by default: those answers stay as they are, for compressing costs
    more time than loopback and local networks take to carry a tensor.
    """
    named = [item.partition(";") for item in accept_encoding.lower().split(",")]
    codings = [coding.strip() for coding, _, weight in named if weight.replace(" ", "") not in ("q=0", "q=0.0")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    return codings[0] if len(codings) == 1 and codings[0] in _WINDOW_BITS else None


def deflated(body: bytes, coding: str) -> bytes:
    """The body in a coding that `wanted_coding` named."""
    deflater = zlib.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    return deflater.compress(body) + deflater.flush()


def _damaged(coding: str, how: str) -> InvalidRequest:
    return InvalidRequest(
        f"The {coding} body is {how}.",
        hint="Compress the whole body, once; deflate means zlib's format.",
    )
