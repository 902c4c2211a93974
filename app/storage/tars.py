"""The list of contents of a tar archive from a stranger, read block by block within limits.

Python's tarfile reads extended headers of any size into memory, so it is not used here.
Source: POSIX pax, "ustar Interchange Format"; GNU tar's long names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK_BYTES = 512
_EXTENDED_BYTES_MAX = 1 << 16
_OCTAL = re.compile(rb"[0-7]+")
_FILE, _OLD_FILE, _FOLDER = b"0", b"\0", b"5"
_PAX, _PAX_FOR_ALL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"


class TarDamaged(ValueError):
    """It is cut off, or no tar archive."""


@dataclass(frozen=True)
class Member:
    name: str
    size_bytes: int
    is_file: bool  # neither folder nor link nor device


def is_header(block: bytes) -> bool:
    if len(block) < BLOCK_BYTES or block[257:262] != b"ustar":
        return False
    announced = block[148:156].strip(b" \0")
    return _OCTAL.fullmatch(announced) is not None and int(announced, 8) == _sum(block)


def members(file: BinaryIO) -> Iterator[Member]:
    """Each entry; while it is at hand, `file` stands at the start of its content, and may be read or not.

    Raises:
        TarDamaged
    """
    long_name = ""
    size: int | None = None
    while (block := _block(file)) != bytes(BLOCK_BYTES):
        if not is_header(block):
            raise TarDamaged("an entry has no header")
        kind, length = block[156:157], _number(block[124:136])
        if kind in (_PAX, _PAX_FOR_ALL, _LONG_NAME, _LONG_LINK):
            content = _extended(file, length)
            if kind == _LONG_NAME:
                long_name = content.split(b"\0")[0].decode(errors="replace")
            elif kind == _PAX:
                records = _records(content)
                long_name = records.get("path", long_name)
                size = int(records["size"]) if records.get("size", "").isdigit() else None
            continue
        length = length if size is None else size
        start = file.tell()
        yield Member(long_name or _name(block), length, kind in (_FILE, _OLD_FILE))
        file.seek(start + -(-length // BLOCK_BYTES) * BLOCK_BYTES if kind != _FOLDER else start)
        long_name, size = "", None


def _block(file: BinaryIO) -> bytes:
    block = file.read(BLOCK_BYTES)
    if len(block) < BLOCK_BYTES:
        raise TarDamaged("it is cut off")
    return block


def _extended(file: BinaryIO, length: int) -> bytes:
    if length > _EXTENDED_BYTES_MAX:
        raise TarDamaged("a header is too long")
    content = file.read(-(-length // BLOCK_BYTES) * BLOCK_BYTES)[:length]
    if len(content) < length:
        raise TarDamaged("it is cut off")
    return content


def _records(content: bytes) -> dict[str, str]:
    """Records of a pax header: length, space, key, "=", value, line end."""
    found = {}
    while content:
        length_text, _, _ = content.partition(b" ")
        if not length_text.isdigit() or not 5 <= (length := int(length_text)) <= len(content):
            raise TarDamaged("a header cannot be read")
        key, _, value = content[len(length_text) + 1 : length - 1].decode(errors="replace").partition("=")
        found[key] = value
        content = content[length:]
    return found


def _name(block: bytes) -> str:
    name, prefix = (part.split(b"\0")[0].decode(errors="replace") for part in (block[:100], block[345:500]))
    return f"{prefix}/{name}" if prefix and block[257:263] == b"ustar\0" else name


def _number(text: bytes) -> int:
    if text[:1] == b"\x80":  # binary, for sizes from 8 GiB
        return int.from_bytes(text[1:], "big")
    digits = text.strip(b" \0") or b"0"
    if not _OCTAL.fullmatch(digits):
        raise TarDamaged("a header cannot be read")
    return int(digits, 8)


def _sum(block: bytes) -> int:
    return sum(block[:148]) + 8 * 0x20 + sum(block[156:])
