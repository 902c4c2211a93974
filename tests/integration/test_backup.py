"""One file that holds all, written while the service works, and put back whole or not at all."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from app.domain.builds import Digest
from app.domain.errors import BackupRefused
from app.storage.artefacts import ArtefactStore
from app.storage.backup import back_up, restore
from app.storage.catalogue import Catalogue
from app.storage.database import Database, migrate
from app.storage.jobs import JobQueue
from tests.integration.storage_fixtures import source_model


class Place:
    """A data folder with its database, artefacts and logs."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root, self.logs, self.file = root, root / "logs", root / "jetforge.db"
        self.store = ArtefactStore(root / "artefacts")

    def filled(self, *texts: str) -> Place:
        migrate(f"sqlite:///{self.file}", self.root / "migrate.lock")
        for text in texts:
            self.add(text)
        self.logs.mkdir()
        (self.logs / "0a1b.log").write_text("the first line\n")
        return self

    def add(self, text: str) -> Digest:
        digest = self.store.put([text.encode()])
        with self.open() as database:
            Catalogue(database).add_model(source_model(text))
        return digest

    def open(self) -> _Open:
        return _Open(self.file)

    def backed_up(self, target: Path) -> Path:
        back_up(self.file, self.store, self.logs, self.root, target, "1.2.3")
        return target

    def restored(self, source: Path) -> None:
        restore(source, self.file, self.store, self.logs)


class _Open:
    def __init__(self, file: Path) -> None:
        self.database = Database(f"sqlite:///{file}")

    def __enter__(self) -> Database:
        return self.database

    def __exit__(self, *_: object) -> None:
        self.database.close()


@pytest.fixture
def full(tmp_path: Path) -> Place:
    return Place(tmp_path / "full").filled("one", "two")


@pytest.fixture
def empty(tmp_path: Path) -> Place:
    return Place(tmp_path / "empty")


def test_what_was_backed_up_is_there_again(full, empty, tmp_path):
    empty.restored(full.backed_up(tmp_path / "all.tar"))

    with empty.open() as database:
        assert {model.name for model in Catalogue(database).models()} == {"one.onnx", "two.onnx"}
        assert JobQueue(database).list() == []
    assert all(empty.store.verify(f"sha256:{hashlib.sha256(text).hexdigest()}") for text in (b"one", b"two"))
    assert (empty.logs / "0a1b.log").read_text() == "the first line\n"


def test_a_writer_in_the_middle_of_its_work_does_not_hinder_a_backup(full, empty, tmp_path):
    with full.open() as database, database.writer():
        full.backed_up(tmp_path / "all.tar")

    empty.restored(tmp_path / "all.tar")


def test_artefacts_that_nothing_refers_to_are_left_out(full, tmp_path):
    full.store.put([b"an upload under way"])

    with tarfile.open(full.backed_up(tmp_path / "all.tar")) as archive:
        assert sum(name.startswith("objects/") for name in archive.getnames()) == 2


def test_nothing_of_a_backup_is_left_in_the_data_folder(full, tmp_path):
    before = {path for path in full.root.rglob("*")}

    full.backed_up(tmp_path / "all.tar")

    assert {path for path in full.root.rglob("*")} - before <= {
        full.root / "jetforge.db-shm",
        full.root / "jetforge.db-wal",
    }


def test_an_existing_file_is_never_written_over(full, tmp_path):
    (tmp_path / "all.tar").write_text("mine")

    with pytest.raises(BackupRefused, match="exists already"):
        full.backed_up(tmp_path / "all.tar")

    assert (tmp_path / "all.tar").read_text() == "mine"


def test_missing_artefacts_are_told_instead_of_left_out(full, tmp_path):
    full.store.delete(full.add("three"))

    with pytest.raises(BackupRefused, match="missing"):
        full.backed_up(tmp_path / "all.tar")

    assert not list(tmp_path.glob("all.tar*"))


def test_a_folder_in_use_is_never_restored_over(full, tmp_path):
    with pytest.raises(BackupRefused, match="exists"):
        full.restored(full.backed_up(tmp_path / "all.tar"))


def damaged(source: Path, **replaced: bytes | None) -> Path:
    """The backup with some entries replaced, or left out."""
    target = source.with_name("damaged.tar")
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for entry in old:
            file = old.extractfile(entry)
            assert file is not None
            content = file.read()
            for name, other in replaced.items():
                if entry.name.startswith(name):
                    content, replaced = other, {}
            if content is not None:
                entry.size = len(content)
                new.addfile(entry, io.BytesIO(content))
    return target


@pytest.mark.parametrize(
    ("replaced", "words"),
    [
        ({"objects/": b"other bytes"}, "has other bytes"),
        ({"objects/": None}, "1 of 2 artefacts"),
        ({"jetforge.db": b"no database"}, "no whole backup"),
        ({"jetforge.db": None}, "no database"),
        ({"manifest.json": b"{}"}, "no whole backup"),
        ({"manifest.json": b'{"format": 9, "jetforge": "9.9"}'}, "format 9"),
        ({"manifest.json": None}, "manifest"),
    ],
)
def test_a_damaged_backup_is_refused_and_leaves_no_database(full, empty, tmp_path, replaced, words):
    source = damaged(full.backed_up(tmp_path / "all.tar"), **replaced)

    with pytest.raises(BackupRefused, match=words):
        empty.restored(source)

    assert not empty.file.exists()
    assert not list(empty.root.glob("*.restoring*"))


@pytest.mark.parametrize("cut", [0, 700, 5000])
def test_a_backup_that_was_cut_is_refused(full, empty, tmp_path, cut):
    source = full.backed_up(tmp_path / "all.tar")
    source.write_bytes(source.read_bytes()[:cut])

    with pytest.raises(BackupRefused):
        empty.restored(source)

    assert not empty.file.exists()


@pytest.mark.parametrize("name", ["../escape", "/tmp/escape", "objects/../../escape", "logs/../escape.log", "extra"])
def test_only_names_that_a_backup_writes_become_paths(full, empty, tmp_path, name):
    source = full.backed_up(tmp_path / "all.tar")
    with tarfile.open(source, "a") as archive:
        archive.addfile(tarfile.TarInfo(name))

    with pytest.raises(BackupRefused, match="not known"):
        empty.restored(source)
