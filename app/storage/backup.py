"""One file with all that a service holds: the job database, every artefact that it names, and the jobs' logs.

A tar without compression (engines and archives do not shrink): `manifest.json`, `jetforge.db`, `objects/<hex>`,
`logs/<job>.log`, in this order.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.domain.errors import BackupRefused
from app.storage.artefacts import CHUNK_BYTES, ArtefactStore, disk_errors, sync_folder
from app.storage.catalogue import Catalogue
from app.storage.database import Database

FORMAT = 1
_MANIFEST, _DATABASE = "manifest.json", "jetforge.db"
_OBJECT, _LOG = re.compile(r"objects/([0-9a-f]{64})"), re.compile(r"logs/([0-9a-f]{1,64}\.log)")
_TRIES = 5  # an artefact may be deleted between the snapshot and its link
_MANIFEST_BYTES = 1 << 16


@dataclass(frozen=True)
class Backup:
    """What a backup holds."""

    objects: int
    logs: int
    size_bytes: int  # of the file


def back_up(database: Path, store: ArtefactStore, logs: Path, root: Path, target: Path, version: str) -> Backup:
    """Write a backup of one moment, while the service goes on.

    Args:
        database: its SQLite file.
        root: the data folder: where links are made meanwhile, on the file system of the artefacts.
        target: the file; it appears when it is whole and on disk.
        version: of this program.

    Raises:
        BackupRefused: the target exists, or its folder does not.
        DiskFull: it does not fit.
    """
    if target.exists() or not target.parent.is_dir():
        raise BackupRefused(
            f"{target} {'exists already' if target.exists() else 'is in a folder that does not exist'}.",
            hint="Name a new file in a folder that exists.",
        )
    part = target.with_name(f"{target.name}.part")
    try:
        with disk_errors(), tempfile.TemporaryDirectory(prefix="backup-", dir=root) as folder:
            snapshot, linked = _snapshot(database, store, Path(folder))
            found = sorted(logs.glob("*.log")) if logs.is_dir() else []
            manifest = {"format": FORMAT, "jetforge": version, "objects": len(linked)}
            with part.open("wb") as file:
                _write(file, manifest, snapshot, linked, found)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
            sync_folder(target.parent)
        return Backup(len(linked), len(found), target.stat().st_size)
    finally:
        part.unlink(missing_ok=True)


def restore(source: Path, database: Path, store: ArtefactStore, logs: Path) -> Backup:
    """Put a backup's content in place; every artefact is compared with its digest.

    Args:
        database: SQLite file that does not exist yet; it appears last.

    Raises:
        BackupRefused: there is a database already, or the file is no whole and undamaged backup.
        DiskFull: it does not fit.
    """
    if database.exists():
        raise BackupRefused(
            f"{database} exists: a backup is restored into an empty data folder only.",
            hint="Name another folder with --data-dir, or move the present one away.",
        )
    part = database.with_name(f"{database.name}.restoring")
    try:
        with disk_errors():
            found = _read(source, part, store, logs)
            _check(part, store)
            part.replace(database)
            sync_folder(database.parent)
        return found
    except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError, sqlite3.DatabaseError) as error:
        raise _damaged(str(error)) from error
    finally:
        part.unlink(missing_ok=True)


def _snapshot(database: Path, store: ArtefactStore, folder: Path) -> tuple[Path, list[Path]]:
    """A copy of the database at one moment, and links to all artefacts that it names."""
    snapshot = folder / _DATABASE
    for _ in range(_TRIES):
        with (
            closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as now,
            closing(sqlite3.connect(snapshot)) as copy,
        ):
            now.backup(copy)
        try:
            return snapshot, _linked(snapshot, store, folder)
        except FileNotFoundError:  # deleted and swept since the snapshot
            continue
    raise BackupRefused(
        "Artefacts that the database names are missing.", hint="jetforge doctor and the server's log tell which."
    )


def _linked(snapshot: Path, store: ArtefactStore, folder: Path) -> list[Path]:
    links = []
    for digest in sorted(_digests(snapshot)):
        link = folder / digest.partition(":")[2]
        if not link.exists():
            os.link(store.path(digest), link)
        links.append(link)
    return links


def _digests(database: Path) -> set[str]:
    opened = Database(f"sqlite:///{database}")
    try:
        return {str(digest) for digest in Catalogue(opened).digests()}
    finally:
        opened.close()


def _write(
    file: io.BufferedWriter, manifest: dict[str, object], snapshot: Path, objects: list[Path], logs: list[Path]
) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        text = json.dumps(manifest).encode()
        entry = tarfile.TarInfo(_MANIFEST)
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
        archive.add(snapshot, _DATABASE)
        for path in objects:
            archive.add(path, f"objects/{path.name}")
        for path in logs:
            archive.add(path, f"logs/{path.name}")


def _read(source: Path, database: Path, store: ArtefactStore, logs: Path) -> Backup:
    counts = {"objects": 0, "logs": 0, "database": 0}
    with _opened(source) as archive:
        manifest = _manifest(archive)
        while entry := archive.next():
            kind = _put(archive, entry, database, store, logs)
            counts[kind] += 1
    if counts["database"] != 1:
        raise _damaged("it has no database")
    if counts["objects"] != manifest["objects"]:
        raise _damaged(f"{counts['objects']} of {manifest['objects']} artefacts")
    return Backup(counts["objects"], counts["logs"], source.stat().st_size)


@contextmanager
def _opened(source: Path) -> Iterator[tarfile.TarFile]:
    try:
        file = source.open("rb")
    except OSError as error:
        raise BackupRefused(f"{source} cannot be read: {error.strerror}.", hint="Name a backup's file.") from error
    with file, tarfile.open(fileobj=file, mode="r:") as archive:
        yield archive


def _manifest(archive: tarfile.TarFile) -> dict[str, object]:
    entry = archive.next()
    if entry is None or entry.name != _MANIFEST or entry.size > _MANIFEST_BYTES:
        raise _damaged("it does not begin with a manifest")
    manifest: dict[str, object] = json.loads(_content(archive, entry).read())
    if manifest["format"] != FORMAT:
        raise BackupRefused(
            f"The backup has format {manifest['format']}; this version reads {FORMAT}.",
            hint=f"Restore it with jetforge {manifest['jetforge']}.",
        )
    return manifest


def _put(archive: tarfile.TarFile, entry: tarfile.TarInfo, database: Path, store: ArtefactStore, logs: Path) -> str:
    """Put one entry in its place; only names that a backup writes become paths."""
    content = _content(archive, entry)
    if entry.name == _DATABASE:
        _save(content, database)
        return "database"
    if found := _OBJECT.fullmatch(entry.name):
        digest = store.put(iter(lambda: content.read(CHUNK_BYTES), b""))
        if digest != f"sha256:{found[1]}":
            raise _damaged(f"the artefact {found[1][:12]} has other bytes")
        return "objects"
    if found := _LOG.fullmatch(entry.name):
        logs.mkdir(parents=True, exist_ok=True)
        _save(content, logs / found[1])
        return "logs"
    raise _damaged(f"the entry {entry.name[:80]!r} is not known")


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> io.BufferedReader:
    content = archive.extractfile(entry) if entry.isreg() else None
    if content is None:
        raise _damaged(f"the entry {entry.name[:80]!r} is no file")
    return content  # type: ignore[return-value]


def _save(content: io.BufferedReader, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(content, file, CHUNK_BYTES)
        file.flush()
        os.fsync(file.fileno())


def _check(database: Path, store: ArtefactStore) -> None:
    with closing(sqlite3.connect(database)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        raise _damaged(f"the database: {verdict}")
    missing = [digest for digest in _digests(database) if not store.has(digest)]
    if missing:
        raise _damaged(f"{len(missing)} artefacts are missing")


def _damaged(what: str) -> BackupRefused:
    return BackupRefused(f"The file is no whole backup: {what[:200]}.", hint="Use another backup.")
