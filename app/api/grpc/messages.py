"""Messages as they come off the wire: inflated within the limit, then parsed."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from starlette.concurrency import run_in_threadpool

from app.api import v2_body
from app.api.body_room import Holding
from app.domain.errors import InvalidRequest

OFF_LOOP_BYTES = 1 << 16  # what takes long for each byte is done on a thread for more bytes than this
# How a compressed message begins: gzip's magic number; zlib's header for a window of 32 KiB. No message of the
# protocol begins so: as a field's tag the first has an impossible wire type, the second the number 15.
_CODINGS = {0x1F: "gzip", 0x78: "deflate"}


async def parsed(kind: Any, data: bytes, limit_bytes: int, holding: Holding) -> Any:
    """The message that these bytes are, compressed or not.

    Args:
        holding: takes room for the message, and for what it inflates to.

    Raises:
        BodiesFull: other messages and bodies leave no room.
        InvalidRequest: they are none.
        BodyTooLarge: they inflate to more than the limit.
    """
    holding.take(len(data))
    coding = _CODINGS.get(data[0]) if data else None
    if coding is not None and len(data) > OFF_LOOP_BYTES:
        data = bytes(await run_in_threadpool(v2_body.inflated, memoryview(data), coding, limit_bytes, holding))
    elif coding is not None:
        data = bytes(v2_body.inflated(memoryview(data), coding, limit_bytes, holding))
    try:
        return kind.FromString(data)
    except DecodeError as error:
        name = kind.DESCRIPTOR.name
        raise InvalidRequest(f"The bytes received are no {name}.", hint="Use the published .proto files.") from error
