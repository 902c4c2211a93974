from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import select, text
from storage_fixtures import child

from app.domain.errors import DiskFull, InvalidOption, StorageBusy
from app.storage.database import Database, checked_url
from app.storage.history import raise_revision, read_revision
from app.storage.tables import counters


def test_what_a_writer_did_is_there_when_its_block_ends_well(database):
    with database.writer() as connection:
        raise_revision(connection)

    with database.reader() as connection:
        assert read_revision(connection) == 1


def test_what_a_writer_did_is_undone_when_its_block_raises(database):
    with pytest.raises(RuntimeError), database.writer() as connection:
        raise_revision(connection)
        raise RuntimeError("in the middle")

    with database.reader() as connection:
        assert read_revision(connection) == 0


def test_a_reader_sees_one_state_while_others_write(database):
    with database.reader() as reader:
        before = read_revision(reader)
        with database.writer() as writer:
            raise_revision(writer)

        assert read_revision(reader) == before


def test_a_reader_cannot_write_and_a_writer_after_it_can(database):
    with pytest.raises(Exception, match="readonly"), database.reader() as connection:
        raise_revision(connection)

    with database.writer() as connection:
        assert raise_revision(connection) == 1


def test_an_accepted_job_survives_a_power_cut_and_references_are_checked(database):
    with database.reader() as connection:
        pragmas = {name: connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous")}
        foreign_keys = connection.scalar(text("PRAGMA foreign_keys"))

    assert pragmas == {"journal_mode": "wal", "synchronous": 2}  # 2: FULL
    assert foreign_keys == 1


@pytest.mark.parametrize("same_process_object", [True, False])
def test_a_writer_that_waits_too_long_for_another_is_told_so(database, same_process_object):
    url = str(database.db.url)
    impatient = Database(url, busy_timeout_s=0.05)
    holder = impatient if same_process_object else database
    try:
        with holder.writer() as connection:
            raise_revision(connection)
            with pytest.raises(StorageBusy), impatient.writer():
                pass
    finally:
        impatient.close()

    with database.writer() as connection:
        assert raise_revision(connection) == 2


def test_a_database_that_cannot_grow_is_told_as_a_full_disk(database):
    with pytest.raises(DiskFull), database.writer() as connection:
        connection.execute(text("PRAGMA max_page_count = 1"))  # at least what is there
        for number in range(10_000):
            connection.execute(counters.insert().values(name=f"{number} {'x' * 500}", value=1))

    with database.reader() as connection:
        assert connection.execute(select(counters)).all() == []


def test_threads_share_the_database(database):
    def count() -> None:
        for _ in range(20):
            with database.writer() as connection:
                raise_revision(connection)
            with database.reader() as connection:
                read_revision(connection)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with database.reader() as connection:
        assert read_revision(connection) == 160


def test_a_process_killed_in_a_write_leaves_the_database_whole(database):
    code = """
import sys, time
from sqlalchemy import text
from app.storage.database import Database
from app.storage.tables import counters
with Database(sys.argv[1]).writer() as connection:
    connection.execute(text("PRAGMA cache_size = 10"))  # so that pages are written before the commit
    for number in range(5000):
        connection.execute(counters.insert().values(name=f"{number} {'x' * 500}", value=1))
    print("in the middle", flush=True)
    time.sleep(600)
"""
    url = str(database.db.url)
    with child(code, url) as process:
        assert process.stdout.readline().strip() == "in the middle"
        written = Path(f"{database.db.url.database}-wal").stat().st_size
        process.kill()

    assert written > 1_000_000
    with database.reader() as connection:
        assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
        assert connection.execute(select(counters)).all() == []
    with database.writer() as connection:
        assert raise_revision(connection) == 1


@pytest.mark.parametrize(
    "url, found",
    [
        ("postgresql://localhost/jobs", "postgresql"),
        ("sqlite://", "no file"),
        ("sqlite:///:memory:", "no file"),
        ("sqlite:///file:jobs?mode=memory&uri=true", "no file"),
        ("jobs.db", "not a database URL"),
    ],
)
def test_only_a_sqlite_file_is_taken(url, found):
    with pytest.raises(InvalidOption, match=found) as refused:
        Database(url)

    assert "sqlite:///" in refused.value.hint


def test_a_sqlite_without_returning_is_refused(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"

    with pytest.raises(InvalidOption, match=r"SQLite 3\.34\.1 was found"):
        checked_url(url, sqlite_version=(3, 34, 1))
    assert checked_url(url, sqlite_version=(3, 35, 0)).database == str(tmp_path / "jobs.db")
