"""Connections to the job database, and its migration.

Only SQLite is supported so far: the queue leans on `BEGIN IMMEDIATE` and on `UPDATE … RETURNING`.
"""

from __future__ import annotations

import fcntl
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from app.domain.errors import DiskFull, InvalidOption, StorageBusy, StorageUnwritable
from app.storage.tables import REVISION

SQLITE_MIN = (3, 35, 0)  # the first with RETURNING


class Database:
    """One SQLite file, shared with other threads and processes.

    Readers see the last commit and never wait; writers take turns.
    """

    def __init__(self, url: str, busy_timeout_s: float = 10) -> None:
        """
        Args:
            url: SQLAlchemy URL of a SQLite file; the file is made when missing, its folder is not.
            busy_timeout_s: how long a writer waits for its turn.

        Raises:
            InvalidOption: another database than a SQLite file, or SQLite is older than 3.35.
        """
        self._busy_timeout_s = busy_timeout_s
        # Within a process a lock hands over at once; SQLite's own waiting sleeps up to 100 ms between tries.
        self._turn = threading.Lock()
        self.db = create_engine(checked_url(url), max_overflow=-1)
        event.listen(self.db, "connect", self._prepare)
        event.listen(self.db, "begin", _begin)

    @contextmanager
    def reader(self) -> Iterator[Connection]:
        """A read transaction: everything in it sees one state of the database. It refuses to write."""
        with _clear_errors(), self.db.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writer(self) -> Iterator[Connection]:
        """A write transaction: committed, and on disk, when the block ends well; undone when it raises.

        Raises:
            StorageBusy: other writers held the database for the whole busy timeout.
            DiskFull: the commit did not fit.
        """
        if not self._turn.acquire(timeout=self._busy_timeout_s):
            raise _busy()
        try:
            with _clear_errors(), self.db.connect() as connection:
                connection.execution_options(immediate=True)
                with connection.begin():
                    yield connection
        finally:
            self._turn.release()

    def close(self) -> None:
        self.db.dispose()

    def _prepare(self, connection: Any, _record: object) -> None:
        connection.isolation_level = None  # `_begin` decides when and how a transaction begins, not the driver
        connection.execute(f"PRAGMA busy_timeout = {round(self._busy_timeout_s * 1000)}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an accepted job survives a power cut
        connection.execute("PRAGMA foreign_keys = ON")


def checked_url(url: str, sqlite_version: tuple[int, ...] = sqlite3.sqlite_version_info) -> URL:
    """The URL, if it names a SQLite file that this SQLite can serve.

    Raises:
        InvalidOption: it does not.
    """
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise InvalidOption(
            "database_url is not a database URL.", hint="Write it as sqlite:////absolute/path/jetforge.db."
        ) from error
    if address.get_backend_name() != "sqlite":
        raise InvalidOption(
            f"database_url names a {address.get_backend_name()} database; only SQLite is supported.",
            hint="Write it as sqlite:////absolute/path/jetforge.db, or leave it empty.",
        )
    if not address.database or address.database.startswith((":memory:", "file:")):
        raise InvalidOption(
            "database_url names no file; the server and its worker share the database as one.",
            hint="Write it as sqlite:////absolute/path/jetforge.db, or leave it empty.",
        )
    if sqlite_version < SQLITE_MIN:
        raise InvalidOption(
            f"SQLite {'.'.join(map(str, sqlite_version))} was found; 3.35 or newer is needed.",
            hint="Use a Python that is linked against a newer SQLite.",
        )
    return address


def migrate(url: str, lock: Path) -> None:
    """Bring the database to this version's tables; several processes may call it at once.

    Args:
        url: as for `Database`; missing folders are made.
        lock: file that the processes lock while one of them works.

    Raises:
        DatabaseNewer: a newer version of this program has migrated it already.
    """
    path = Path(checked_url(url).database or "")
    for folder in (lock.parent, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # given back when the file is closed, or the process ends
        database = Database(url)
        try:
            with database.writer() as connection:
                if not _is_current(connection):
                    from app.storage.migrations import upgrade

                    upgrade(connection)
        finally:
            database.close()


def _is_current(connection: Connection) -> bool:
    """Whether nothing is to be migrated: told without alembic, which takes 11 MiB of every process that imports it."""
    tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name = 'alembic_version'")
    if tables.first() is None:
        return False
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() == [REVISION]


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    # A reader that turned into a writer could fail in the middle, with no way to wait for its turn.
    connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if immediate else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        text = str(error.orig)  # error codes came with Python 3.11; the texts are SQLite's own and stable
        if "is locked" in text:
            raise _busy() from error
        if "disk is full" in text:
            raise DiskFull("The job database cannot grow.", hint="Free some disk space and try again.") from error
        if any(words in text for words in ("readonly", "disk I/O error", "unable to open")):
            raise StorageUnwritable(
                f"The job database cannot be written: {text}.",
                hint="Check the disk and its mount (dmesg, mount); a worn SD card turns read-only.",
            ) from error
        raise


def _busy() -> StorageBusy:
    return StorageBusy("Other writers kept the job database busy for too long.", hint="Try again in a moment.")
