"""A data folder that turned read-only, as a worn SD card does: said by name."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain.errors import StorageUnwritable
from app.storage.artefacts import ArtefactStore
from app.storage.database import Database, migrate
from app.storage.jobs import JobQueue


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own, with a store and a database."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    ArtefactStore(tmp_path).put([b"kept"])
    migrate(f"sqlite:///{tmp_path / 'jetforge.db'}", tmp_path / "migrate.lock")
    subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_uploads_to_a_read_only_disk_are_refused_by_name(disk):
    store = ArtefactStore(disk)

    with pytest.raises(StorageUnwritable, match="Read-only"):
        store.put([b"new"])


def test_a_job_on_a_read_only_disk_is_refused_by_name(disk):
    database = Database(f"sqlite:///{disk / 'jetforge.db'}")

    with pytest.raises(StorageUnwritable):
        JobQueue(database).claim("worker")

    database.close()
