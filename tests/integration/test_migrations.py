from __future__ import annotations

import fcntl
import sqlite3
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from storage_fixtures import child

from alembic import command
from app.domain.errors import DatabaseNewer
from app.storage.database import Database, migrate
from app.storage.migrations import MIGRATIONS
from app.storage.tables import REVISION, metadata


def described(database: Database) -> list[tuple[str, ...]]:
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE '%alembic%' ORDER BY type, name"
    with database.reader() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


@pytest.fixture
def declared(tmp_path):
    """A database made from `tables.py` itself."""
    database = Database(f"sqlite:///{tmp_path / 'declared.db'}")
    with database.writer() as connection:
        metadata.create_all(connection)
    yield database
    database.close()


def test_the_last_migration_ends_with_the_tables_that_the_code_declares(database, declared):
    with database.reader() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []

    assert described(database) == described(declared)


def test_the_last_migration_is_the_one_that_the_code_knows(database):
    with database.reader() as connection:
        assert MigrationContext.configure(connection).get_current_heads() == (REVISION,)


def test_migrating_again_changes_nothing(database, tmp_path):
    before = described(database)

    migrate(str(database.db.url), tmp_path / "migrate.lock")

    assert described(database) == before


def test_missing_folders_are_made(tmp_path):
    path = tmp_path / "a%20b" / "c" / "jetforge.db"

    migrate(f"sqlite:///{path}", tmp_path / "d" / "e" / "migrate.lock")

    assert path.is_file()


def test_processes_that_start_at_once_migrate_once(tmp_path, declared):
    code = """
import sys
from pathlib import Path
from app.storage.database import migrate
migrate(sys.argv[1], Path(sys.argv[2]))
"""
    url = f"sqlite:///{tmp_path / 'jetforge.db'}"
    processes = [child(code, url, str(tmp_path / "migrate.lock")) for _ in range(4)]

    assert [process.communicate(timeout=60) and process.returncode for process in processes] == [0, 0, 0, 0]

    database = Database(url)
    assert described(database) == described(declared)
    database.close()


def test_a_migration_waits_for_another_that_is_under_way(tmp_path):
    path, lock = tmp_path / "jetforge.db", tmp_path / "migrate.lock"
    waiting = threading.Thread(target=migrate, args=(f"sqlite:///{path}", lock))

    with lock.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        waiting.start()
        waiting.join(timeout=0.3)
        assert not path.exists()
    waiting.join()

    assert path.exists()


def test_a_database_of_a_newer_version_is_refused_and_left_alone(database, tmp_path: Path):
    with database.writer() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    before = described(database)

    with pytest.raises(DatabaseNewer, match="9999") as refused:
        migrate(str(database.db.url), tmp_path / "migrate.lock")

    assert "newer version" in refused.value.hint
    assert described(database) == before


def test_engines_of_before_uploads_keep_their_rows_and_their_numbers(tmp_path):
    path = tmp_path / "jetforge.db"
    before = Database(f"sqlite:///{path}")
    with before.writer() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        model = "INSERT INTO models (digest, name, format, size_bytes, uploaded_at) VALUES ('m', 'm', 'onnx', 1, '')"
        connection.execute(text(model))
        for name in ("a", "b", "gone"):
            columns = "name, version, key, blob, model, options, built, created_at"
            row = f"INSERT INTO engines ({columns}) VALUES ('{name}', 1, 'k', 'b', 'm', '{{}}', '{{}}', '2026')"
            connection.execute(text(row))
        connection.execute(text("DELETE FROM engines WHERE name = 'gone'"))
    before.close()

    migrate(f"sqlite:///{path}", tmp_path / "migrate.lock")

    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT seq, name, model, created_at, damaged_at FROM engines").fetchall()
        given = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'engines'").fetchall()
    assert rows == [(1, "a", "m", "2026", None), (2, "b", "m", "2026", None)]
    assert given == [(3,)]  # no number is given twice
