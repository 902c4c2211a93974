from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_fixtures import Clocks

from app.storage.catalogue import Catalogue
from app.storage.database import Database, migrate
from app.storage.jobs import JobQueue


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'jetforge.db'}"
    migrate(url, tmp_path / "migrate.lock")
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database)


@pytest.fixture
def catalogue(database: Database) -> Catalogue:
    return Catalogue(database)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def timed(database: Database, clocks: Clocks) -> JobQueue:
    return JobQueue(database, now=lambda: clocks.wall, monotonic_s=lambda: clocks.elapsed_s)
