"""Stored bytes, named by their digest: models, calibration archives, engines.

Under the root: `objects/ab/cdef…` holds what is whole and on disk, `drafts/` what is being written, `quarantine/` what
was found damaged; `lock` keeps a sweep and a commit from meeting on one object.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from app.domain.builds import Digest
from app.domain.errors import DiskFull, InvalidRequest, StorageUnwritable

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CHUNK_BYTES = 1 << 20
QUARANTINED_MAX = 3
SPACE_CHECK_BYTES = 16 << 20  # how much is written between two looks at the free space


class ArtefactStore:
    """Files by digest. Several threads and processes may use one root at a time."""

    def __init__(self, root: Path, min_free_bytes: int = 0, used_bytes_max: int = 0) -> None:
        """
        Args:
            root: made when missing; on one file system with whatever takes hard links of its files.
            min_free_bytes: writing stops before less than this is free.
            used_bytes_max: writing stops before all artefacts together have more; 0 = no limit.
        """
        self.min_free_bytes = min_free_bytes
        self._used_bytes_max = used_bytes_max
        self._objects = root / "objects"
        self._drafts = root / "drafts"
        self._quarantine = root / "quarantine"
        self._lock = root / "lock"
        for folder in (self._objects, self._drafts):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """A file to write; it is removed when the block ends without a commit.

        Raises:
            DiskFull: here or in `write`, when too little is free.
        """
        self.check_space(0)
        self.check_quota(0)
        path = self._drafts / secrets.token_hex(16)
        with disk_errors(), FileIO(path, "x") as file:
            try:
                yield Draft(self, path, file)
            finally:
                path.unlink(missing_ok=True)

    def put(self, chunks: Iterable[bytes]) -> Digest:
        """Store the bytes of all chunks as one artefact."""
        with self.draft() as draft:
            for chunk in chunks:
                draft.write(chunk)
            return draft.commit()

    def put_file(self, path: Path) -> Digest:
        """Store a copy of a file."""
        return self.put(_chunks(path))

    def path(self, digest: str) -> Path:
        """Where the artefact is, if it is stored; read-only.

        Raises:
            InvalidRequest: not a digest.
        """
        name = checked_digest(digest).partition(":")[2]
        return self._objects / name[:2] / name

    def size_bytes(self, digest: str) -> int:
        return self.path(digest).stat().st_size

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def verify(self, digest: str) -> bool:
        """Whether the artefact is stored and its bytes still have this digest. Reads all of it."""
        hashed = hashlib.sha256()
        try:
            for chunk in _chunks(self.path(digest)):
                hashed.update(chunk)
        except FileNotFoundError:  # never stored, or swept meanwhile
            return False
        return hashed.hexdigest() == self.path(digest).name

    def quarantine(self, digest: str) -> None:
        """Move a damaged artefact aside, for a look; of those only the last few are kept."""
        folder = self._quarantine
        with self._locked():
            if self.verify(digest):  # whole again in the meantime
                return
            folder.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                self.path(digest).replace(folder / self.path(digest).name)
            for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_ctime)[:-QUARANTINED_MAX]:
                path.unlink()

    def delete(self, digest: str) -> None:
        """Remove the artefact, if it is stored. Nothing may refer to it any more."""
        with self._locked():
            self.path(digest).unlink(missing_ok=True)

    def sweep(self, keep: Collection[Digest], older_than_s: float) -> list[str]:
        """Remove what nothing refers to and what was left half-written.

        Args:
            keep: digests that something refers to.
            older_than_s: younger files stay: an upload may be under way, or stored and not yet referred to.

        Returns:
            Digests of removed artefacts, and names of removed drafts.
        """
        swept = [path.name for path in self._drafts.iterdir() if self._removed(path, older_than_s)]
        swept += [f"sha256:{path.name}" for path in self._unkept(keep) if self._removed(path, older_than_s)]
        return swept

    def orphans(self, keep: Collection[Digest], older_than_s: float) -> dict[str, int]:
        """What `sweep` would remove, half-written files aside: sizes in bytes by digest."""
        found = {}
        for path in self._unkept(keep):
            with contextlib.suppress(FileNotFoundError):  # swept meanwhile
                stat = path.stat()
                if time.time() - stat.st_mtime >= older_than_s:
                    found[f"sha256:{path.name}"] = stat.st_size
        return found

    def stored_bytes(self) -> int:
        """Sizes of all artefacts together; takes a look at each."""
        total_bytes = 0
        for path in self._objects.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                total_bytes += path.stat().st_size
        return total_bytes

    def check_space(self, wanted_bytes: int) -> None:
        """Refuse to write when less than the wanted minimum would be free afterwards.

        Raises:
            DiskFull: it would.
        """
        free = shutil.disk_usage(self._drafts).free
        if free - wanted_bytes < self.min_free_bytes:
            raise DiskFull(
                f"{free >> 20} MiB of disk are free; {self.min_free_bytes >> 20} MiB have to stay free.",
                hint="Delete engines or models that are not needed, or free disk space otherwise, and try again.",
            )

    def check_quota(self, wanted_bytes: int) -> None:
        """Refuse to write when all artefacts together would have more bytes than they may.

        Raises:
            DiskFull: they would.
        """
        if self._used_bytes_max and (used := self.stored_bytes()) + wanted_bytes > self._used_bytes_max:
            raise DiskFull(
                f"{used >> 20} MiB are stored, and {self._used_bytes_max >> 20} MiB may be.",
                hint="Delete engines or models that are not needed, or raise stored_mib_max.",
            )

    def adopt(self, draft: Path, digest: Digest) -> None:
        """Make a whole and synced draft the artefact of its digest; called by `Draft.commit`."""
        target = self.path(digest)
        target.parent.mkdir(exist_ok=True)
        with self._locked():
            draft.replace(target)
        sync_folder(self._objects)
        sync_folder(target.parent)

    def renewed(self, digest: Digest) -> bool:
        """Whether the artefact is stored already, undamaged; if so its age starts anew, for the next sweep."""
        target = self.path(digest)
        if not self.verify(digest):  # a damaged one is replaced by what was just uploaded
            return False
        with self._locked():
            if not target.is_file():  # swept meanwhile
                return False
            os.utime(target)
            return True

    def _unkept(self, keep: Collection[Digest]) -> list[Path]:
        kept = {self.path(digest) for digest in keep}
        return [path for path in self._objects.glob("??/*") if path not in kept]

    def _removed(self, path: Path, older_than_s: float) -> bool:
        with self._locked():
            try:
                if time.time() - path.stat().st_mtime < older_than_s:
                    return False
                if path.is_dir():  # of a runtime that was killed while it loaded an engine
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except FileNotFoundError:  # a draft became an artefact, or another sweep was faster
                return False
            return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Without it a sweep could find an object old, and remove it after a commit has renewed it."""
        with self._lock.open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


class Draft:
    """An artefact being written. Its bytes are in the file as soon as `write` returns."""

    def __init__(self, store: ArtefactStore, path: Path, file: FileIO) -> None:
        self.path = path  # until the commit
        self.size_bytes = 0
        self._store = store
        self._file = file
        self._hash = hashlib.sha256()
        self._unchecked_bytes = 0

    def write(self, chunk: bytes) -> None:
        self._unchecked_bytes += len(chunk)
        if self._unchecked_bytes >= SPACE_CHECK_BYTES:
            self._store.check_space(len(chunk))
            self._store.check_quota(self.size_bytes + len(chunk))
            self._unchecked_bytes = 0
        self._hash.update(chunk)
        self.size_bytes += len(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._file.write(rest) :]

    def commit(self) -> Digest:
        """Store what was written; it is whole and on disk when this returns. Nothing can be written after."""
        digest = Digest(f"sha256:{self._hash.hexdigest()}")
        with self._file:
            if self._store.renewed(digest):
                return digest
            self._store.check_quota(self.size_bytes)
            os.fchmod(self._file.fileno(), 0o444)
            os.fsync(self._file.fileno())
        self._store.adopt(self.path, digest)
        return digest


def checked_digest(text: str) -> Digest:
    """The text, if it is a digest; no other text ever becomes part of a path.

    Raises:
        InvalidRequest: it is not.
    """
    if not DIGEST.fullmatch(text):
        raise InvalidRequest(
            f"{text[:80]!r} is not the id of stored bytes.", hint="Such ids are sha256: and 64 hex digits."
        )
    return Digest(text)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into DiskFull, a failing or read-only disk into StorageUnwritable."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EIO):
            raise StorageUnwritable(
                f"The data folder cannot be written: {error.strerror}.",
                hint="Check the disk and its mount (dmesg, mount); a worn SD card turns read-only.",
            ) from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull("The disk is full.", hint="Free some disk space and try again.") from error


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, as well as the files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
