"""Which workers live, and which server holds the data folder."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import TextIO

from app.domain.errors import StartRefused


class Presence:
    """A locked file that says this worker lives; the system unlocks it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.worker = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._file = (folder / self.worker).open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def is_alive(self, worker: str) -> bool:
        """Whether that worker holds its lock. Files of the dead are removed on the way."""
        if worker == self.worker:
            return True
        return _is_locked(self._folder / worker)

    def leave(self) -> None:
        (self._folder / self.worker).unlink(missing_ok=True)
        self._file.close()


def workers_alive(folder: Path) -> int:
    """How many workers hold their lock."""
    return sum(_is_locked(path) for path in folder.iterdir()) if folder.is_dir() else 0


def _is_locked(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    path.unlink(missing_ok=True)
    return False


def claimed(lock: Path) -> TextIO:
    """Hold the data folder as its only server: until the result is closed or the process ends, however it ends.

    Raises:
        StartRefused: another process holds it.
    """
    file = lock.open("a+")
    try:
        # Not flock: replicas, which are forked, would hold it too, and outlive a killed server by a moment. This one is
        # the process's own, and goes when it closes the file, whichever time it opened it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # POSIX leaves it open which
        with file:
            file.seek(0)
            holder = file.read().strip()
        raise StartRefused(
            f"The data folder {lock.parent} is in use by another jetforge serve (process {holder or 'unknown'}).",
            hint="Stop that one first, or give this one a folder of its own: --data-dir.",
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
