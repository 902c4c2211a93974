"""RevisionWatch: whether the database has changed, for a few microseconds and without waiting for anybody."""

from __future__ import annotations

import sqlite3

from app.storage.database import Database


class RevisionWatch:
    """Remembers a revision for as long as nobody has committed anything. For one thread.

    SQLite counts, in the memory that its processes share, the commits of all other connections; asking for that count
    (`PRAGMA data_version`) reads no table. The connection is therefore this object's own and never writes.
    """

    def __init__(self, database: Database) -> None:
        self._pooled = database.db.raw_connection()
        connection = self._pooled.driver_connection
        assert isinstance(connection, sqlite3.Connection)
        connection.execute("PRAGMA busy_timeout = 0")  # whoever asks would rather hear that it is not known
        self._connection = connection
        self._learnt: tuple[int, int] | None = None  # the count, and the revision read after it

    def count(self) -> int | None:
        """SQLite's count of commits; None when it cannot be told at once."""
        try:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return None

    def known(self) -> int | None:
        """The revision, if nothing was committed since it was learnt; else it has to be read."""
        learnt = self._learnt
        return learnt[1] if learnt is not None and learnt[0] == self.count() else None

    def learn(self, count: int | None, revision: int) -> None:
        """Remember a revision.

        Args:
            count: as `count` told it *before* the revision was read: a commit in between then shows.
        """
        self._learnt = None if count is None else (count, revision)

    def close(self) -> None:
        self._connection.close()
        self._pooled.detach()
