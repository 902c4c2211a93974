"""API keys as they are stored: their digests, never the keys."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import func, insert, select, update

from app.domain.access import ApiKey
from app.domain.errors import KeyNameTaken, KeyNotFound
from app.storage.database import Database
from app.storage.history import raise_revision, read_revision
from app.storage.tables import api_keys, as_domain

_COUNTER = "keys"


class KeyStore:
    """Each call is one transaction. Keys that were revoked stay listed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, key: ApiKey) -> None:
        """Raises KeyNameTaken when a key of that name is not revoked."""
        with self._database.writer() as connection:
            same = (api_keys.c.name == key.name) & api_keys.c.revoked_at.is_(None)
            if connection.scalar(select(func.count()).where(same)):
                raise KeyNameTaken(f"There is a key named {key.name}.", hint="Revoke it first, or choose another name.")
            connection.execute(insert(api_keys).values(**vars(key)))
            raise_revision(connection, _COUNTER)

    def list(self) -> list[ApiKey]:
        """All keys, in the order in which they were made."""
        with self._database.reader() as connection:
            rows = connection.execute(select(api_keys).order_by(api_keys.c.seq))
            return [as_domain(ApiKey, row) for row in rows]

    def revoke(self, name: str, at: datetime) -> ApiKey:
        """Close a key for ever. Raises KeyNotFound when no key of that name is open."""
        wanted = (api_keys.c.name == name) & api_keys.c.revoked_at.is_(None)
        with self._database.writer() as connection:
            row = connection.execute(
                update(api_keys).where(wanted).values(revoked_at=at).returning(*api_keys.c)
            ).one_or_none()
            if row is None:
                raise KeyNotFound(f"No key is named {name[:80]!r}.", hint="jetforge keys list shows them.")
            raise_revision(connection, _COUNTER)
            return as_domain(ApiKey, row)

    def revision(self) -> int:
        """Grows with every key that is made or revoked."""
        with self._database.reader() as connection:
            return read_revision(connection, _COUNTER)

    def note_use(self, used: Mapping[str, datetime]) -> None:
        """Record when keys were last used, by their ids."""
        with self._database.writer() as connection:
            for key_id, at in used.items():
                connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=at))
