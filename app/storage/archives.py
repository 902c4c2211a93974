"""Calibration archives: zips from strangers, checked before anything in them is unpacked."""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.domain.errors import ArchiveRejected
from app.domain.file_names import AT_MISSING, is_file_name

CHUNK_BYTES = 1 << 16
IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})  # suffixes of files that are decoded as images
NESTED = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar", ".jar"})
METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})  # the others can ask for GiB of working memory
ENCRYPTED = 0x1 | 0x40 | 0x2000  # bits of the flags: encrypted, strongly encrypted, masked directory
ENTRY_DIRECTORY_BYTES = 1024  # of an entry in the central directory, on average at most

END = struct.Struct("<4s4H2LH")  # end of central directory
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")
HEADER = struct.Struct("<4s24x3H12x")  # of an entry in the central directory: signature, three lengths


@dataclass(frozen=True)
class ArchiveLimits:
    entries_max: int  # entries of any kind
    unpacked_bytes_max: int  # all entries together
    ratio_max: int = 200  # unpacked / packed
    ratio_floor_bytes: int = 1 << 20  # what unpacks to less may have any ratio: a blank image shrinks well


def checked_archive(path: Path, limits: ArchiveLimits) -> int:
    """The number of usable files in an archive; nothing is unpacked.

    Raises:
        ArchiveRejected: not a zip, damaged, past a limit, or with an entry that no set of samples needs.
    """
    check_directory(path, limits)
    with _clear_errors(), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        _check_sizes(entries, path.stat().st_size, limits)
        for info in entries:
            _check_entry(info, limits)
        usable = usable_entries(archive)
    if not usable:
        raise ArchiveRejected("The archive holds no files.", hint="Put images like those seen in use into it.")
    return len(usable)


def opened_archive(path: Path) -> zipfile.ZipFile:
    """A checked archive, to be closed by the caller.

    Raises:
        ArchiveRejected: it is damaged.
    """
    with _clear_errors():
        return zipfile.ZipFile(path)


def usable_entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Files in the archive's order, without folders, hidden files and what macOS adds.

    Raises:
        ArchiveRejected: one of them is an archive itself.
    """
    usable = [info for info in archive.infolist() if not info.is_dir() and not _is_clutter(info.filename)]
    for info in usable:
        if Path(info.filename).suffix.lower() in NESTED:
            raise ArchiveRejected(
                f"The archive holds another archive: {_shown(info)}.", hint="Put the files themselves into one zip."
            )
    return usable


def read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit_bytes: int) -> bytes:
    """Unpack one file, whatever its declared size is.

    Raises:
        ArchiveRejected: damaged, or it unpacks to more than `limit_bytes` or to another size than declared.
    """
    content = bytearray()
    with _clear_errors(), archive.open(info) as source:
        while len(content) <= limit_bytes and (chunk := source.read(CHUNK_BYTES)):
            content += chunk
    if len(content) > limit_bytes:
        raise ArchiveRejected(
            f"{_shown(info)} unpacks to more than {limit_bytes:,} bytes.", hint="Take it out, or shrink it."
        )
    if len(content) != info.file_size:
        raise ArchiveRejected(
            f"{_shown(info)} unpacks to {len(content):,} bytes; {info.file_size:,} were declared.",
            hint="The archive is damaged: make it anew.",
        )
    return bytes(content)


def check_directory(path: Path, limits: ArchiveLimits) -> None:
    """Count the entries before `zipfile` makes an object of each."""
    with path.open("rb") as file:
        directory_end, size_bytes = _directory(file)
        if size_bytes > limits.entries_max * ENTRY_DIRECTORY_BYTES:
            raise _too_many(limits)
        if size_bytes > directory_end:
            raise _damaged()
        file.seek(directory_end - size_bytes)
        directory = file.read(size_bytes)
    at = entries = 0
    while at < len(directory):
        entries += 1
        if entries > limits.entries_max:
            raise _too_many(limits)
        if len(directory) - at < HEADER.size:
            raise _damaged()
        signature, *lengths = HEADER.unpack_from(directory, at)
        if signature != b"PK\x01\x02":
            raise _damaged()
        at += HEADER.size + sum(lengths)
    if at > len(directory):
        raise _damaged()


def _directory(file: BinaryIO) -> tuple[int, int]:
    """Where the central directory ends, and its size in bytes; both found as `zipfile` finds them."""
    file_bytes = file.seek(0, 2)
    tail_at = max(0, file_bytes - END.size - 0xFFFF)
    file.seek(tail_at)
    tail = file.read()
    found = len(tail) - END.size
    if not (tail[found:].startswith(b"PK\x05\x06") and tail.endswith(b"\0\0")):  # that is: unless without a comment
        found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) - found < END.size:
        file.seek(0)
        raise _without_directory(file.read(HEADER.size), tail)
    size_bytes: int = END.unpack_from(tail, found)[5]
    end = tail_at + found
    file.seek(max(0, end - LOCATOR64.size - END64.size))
    extended = file.read(min(end, LOCATOR64.size + END64.size))
    if extended[-LOCATOR64.size :].startswith(b"PK\x06\x07"):
        if not extended.startswith(b"PK\x06\x06"):
            raise _damaged()
        end -= len(extended)
        size_bytes = END64.unpack_from(extended)[8]
    return end, size_bytes


def _without_directory(head: bytes, tail: bytes) -> ArchiveRejected:
    if head.startswith(b"PK\x03\x04"):
        return ArchiveRejected(
            "The archive is cut off: its table of contents, which comes last, is missing.",
            hint="Copy or send it again, and compare the file sizes.",
        )
    usual = "Send a zip of images, as `zip -r` makes it."
    return ArchiveRejected("The upload is not a zip archive.", hint=AT_MISSING if is_file_name(tail) else usual)


def _check_sizes(entries: list[zipfile.ZipInfo], packed_bytes: int, limits: ArchiveLimits) -> None:
    unpacked_bytes = sum(info.file_size for info in entries)
    if unpacked_bytes > limits.unpacked_bytes_max:
        raise ArchiveRejected(
            f"The archive unpacks to {unpacked_bytes:,} bytes; at most {limits.unpacked_bytes_max:,} are accepted.",
            hint="Leave some files out: a few hundred images are enough.",
        )
    # Packed is the size of the file: entries that share their bytes would make the sum of theirs look harmless.
    _check_ratio("The archive", unpacked_bytes, packed_bytes, limits)


def _check_ratio(what: str, unpacked_bytes: int, packed_bytes: int, limits: ArchiveLimits) -> None:
    if unpacked_bytes > limits.ratio_floor_bytes and unpacked_bytes > limits.ratio_max * packed_bytes:
        raise ArchiveRejected(
            f"{what} unpacks to {unpacked_bytes:,} bytes from {packed_bytes:,}: more than {limits.ratio_max} times.",
            hint="Real images shrink far less. Take such files out.",
        )


def _check_entry(info: zipfile.ZipInfo, limits: ArchiveLimits) -> None:
    name = info.orig_filename
    if name.startswith("/") or re.search(r"^[A-Za-z]:|[\\\0]", name) or ".." in name.split("/"):
        raise ArchiveRejected(
            f"The archive has a path that leaves it: {_shown(info)}.", hint="Make it with relative paths."
        )
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveRejected(
            f"The archive has a link or a special file: {_shown(info)}.", hint="Put the files themselves into it."
        )
    if info.flag_bits & ENCRYPTED:
        raise ArchiveRejected(f"The archive is encrypted: {_shown(info)}.", hint="Make it without a password.")
    if info.compress_type not in METHODS:
        raise ArchiveRejected(
            f"The archive uses a compression that is not read: {_shown(info)}.", hint="Make it with deflate or store."
        )
    _check_ratio(_shown(info), info.file_size, info.compress_size, limits)


def _is_clutter(name: str) -> bool:
    return any(part == "__MACOSX" or part.startswith(".") for part in name.split("/"))


def _shown(info: zipfile.ZipInfo) -> str:
    return repr(info.orig_filename[:80])


def _too_many(limits: ArchiveLimits) -> ArchiveRejected:
    return ArchiveRejected(
        f"The archive has more than {limits.entries_max:,} entries.",
        hint="Leave some files out: a few hundred images are enough.",
    )


def _damaged() -> ArchiveRejected:
    return ArchiveRejected("The archive is damaged.", hint="Make it anew, or send it again.")


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,  # of a version of the format, or a way to encrypt, that it lacks
        ValueError,  # of a name that is not UTF-8, or of an offset before the start
        OSError,  # likewise
        EOFError,
    ) as error:
        raise _damaged() from error
