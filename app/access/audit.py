"""The audit log: who changed what, when, and how it ended. JSON lines in files of bounded size."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

FILES = 4  # the one that grows, and the older ones
PATH_CHARS_MAX = 300


class AuditLog:
    """Appends to `audit.jsonl`; when it is full it becomes `audit.1.jsonl`, and so on. Any thread may write."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """
        Args:
            folder: made when it is missing.
            bytes_max: of all files together.
        """
        self._folder = folder
        self._file_bytes_max = bytes_max // FILES
        self._lock = threading.Lock()

    def write(
        self, who: str, key: str | None, address: str, method: str, path: str, status: int, made: str | None = None
    ) -> None:
        """Add a line.

        Args:
            who: the key's name, or "anonymous".
            key: the key's id; None without a key.
            made: what the answer's Location names; None when it has none.
        """
        entry = {
            "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "who": who,
            "key": key,
            "address": address,
            "method": method,
            "path": path[:PATH_CHARS_MAX],
            "status": status,
            "made": made,
        }
        line = json.dumps(entry).encode() + b"\n"  # ASCII: no line separator of Unicode can end it early
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._rotate(len(line))
            with self._path(0).open("a+b") as file:
                file.write(line if _ends_whole(file) else b"\n" + line)

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """The newest entries, newest first."""
        entries: list[dict[str, Any]] = []
        with self._lock:
            for line in self._lines():
                if len(entries) == limit:
                    break
                try:
                    entries.append(json.loads(line))
                except ValueError:  # cut off by a crash
                    continue
        return entries

    def _lines(self) -> Iterator[bytes]:
        for number in range(FILES):
            try:
                lines = self._path(number).read_bytes().splitlines()
            except FileNotFoundError:
                return
            yield from reversed(lines)

    def _rotate(self, coming_bytes: int) -> None:
        try:
            size = self._path(0).stat().st_size
        except FileNotFoundError:
            return
        if size + len(b"\n") + coming_bytes <= self._file_bytes_max:
            return
        for number in range(FILES - 1, 0, -1):
            older = self._path(number - 1)
            if older.exists():
                older.replace(self._path(number))

    def _path(self, number: int) -> Path:
        return self._folder / (f"audit.{number}.jsonl" if number else "audit.jsonl")


def _ends_whole(file: BinaryIO) -> bool:
    """Whether the last line is complete: a crash may have cut it off."""
    if not file.seek(0, os.SEEK_END):
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
