"""What stands behind something else in an engine's file: content, its length, a mark that says what it is."""

from __future__ import annotations

import os
import struct
from pathlib import Path

_END = struct.Struct("<Q8s")


def append(file: Path, content: bytes, mark: bytes) -> None:
    """Put the content behind what the file holds.

    Args:
        mark: 8 bytes.
    """
    with file.open("ab") as opened:
        opened.write(content)
        opened.write(_END.pack(len(content), mark))


def lengths(file: Path, mark: bytes) -> tuple[int, int] | None:
    """Bytes of what the file held before, and of the content behind it; None where there is none with this mark."""
    with file.open("rb") as opened:
        size_bytes = opened.seek(0, os.SEEK_END)
        if size_bytes < _END.size:
            return None
        opened.seek(-_END.size, os.SEEK_END)
        content, found = _END.unpack(opened.read())
    before = size_bytes - _END.size - content
    return (before, content) if found == mark and before >= 0 else None


def part(file: Path, start: int, length: int) -> bytes:
    """So many bytes of the file."""
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(length)
