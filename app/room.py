"""Room for a build: the worker asks the server, which owns the warm engines, to let idle ones go.

Over a socket in the data folder, one line of JSON each way. A server that is not there cannot be reached, so nothing
has to be timed or cleaned up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_LINE_BYTES = 1 << 16
_WAIT_S = 30.0  # for engines to leave; a build that waits longer had better start


@dataclass(frozen=True)
class Room:
    """What is free after idle engines have left."""

    free_bytes: int
    evicted: tuple[str, ...]  # "name:version"


FreeUp = Callable[[int, str], Awaitable[Room]]  # bytes that are needed, name of the backend that needs them


@asynccontextmanager
async def listening(path: Path, free_up: FreeUp) -> AsyncIterator[None]:
    """Answer workers for as long as the block lasts."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = json.loads(await reader.readline())
            room = await free_up(int(asked["needed_bytes"]), str(asked["backend"]))
            writer.write(json.dumps(asdict(room)).encode() + b"\n")
            await writer.drain()
        except Exception:
            log.exception("a worker's request for memory failed")  # it builds without
        finally:
            writer.close()

    try:
        listener = _bound(path)
    except OSError as error:
        log.warning("workers cannot ask for memory: %s", error.strerror)
        yield
        return
    server = await asyncio.start_unix_server(answer, sock=listener, limit=_LINE_BYTES)
    try:
        yield
    finally:
        server.close()


def asked(path: Path, needed_bytes: int, backend: str) -> Room | None:
    """Have the server make room; None when there is no server, or it does not answer."""
    request = json.dumps({"needed_bytes": needed_bytes, "backend": backend}).encode() + b"\n"
    with suppress(OSError, ValueError, KeyError), socket.socket(socket.AF_UNIX) as connection, _short(path) as address:
        connection.settimeout(_WAIT_S)
        connection.connect(address)
        connection.sendall(request)
        with connection.makefile("rb") as lines:
            answer = json.loads(lines.readline(_LINE_BYTES))
        return Room(int(answer["free_bytes"]), tuple(answer["evicted"]))
    return None


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # of an earlier server
    listener = socket.socket(socket.AF_UNIX)
    with _short(path) as address:
        listener.bind(address)
    return listener


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """The path of a socket in at most 108 bytes, however deep its folder lies."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
