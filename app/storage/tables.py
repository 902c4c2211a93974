"""Tables of the job database. A change here needs a migration in `alembic/versions` (tested).

Columns are named like the fields of the domain types. Every `seq` is SQLite's row id: it grows, is never given
twice, and is the last column of every index without being named there.
"""

from __future__ import annotations

from datetime import datetime, timezone
from enum import Enum
from typing import Any, TypeVar

from sqlalchemy import Boolean, Column, Dialect, Float, ForeignKey, Index, Integer, MetaData, Row, Table, Text
from sqlalchemy.types import TypeDecorator

from app.domain.access import Role
from app.domain.builds import BuildOptions, BuiltEngine, ModelFormat
from app.domain.jobs import EventKind, Failure, JobState, Stage
from app.domain.webhooks import DeliveryState
from app.storage.codec import decode, encode

REVISION = "0002_api_keys"  # of `alembic/versions`: the last, which makes these tables

T = TypeVar("T")


class Encoded(TypeDecorator[Any]):
    """A domain dataclass as JSON text."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else encode(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else decode(self.kind, value)


class Choice(TypeDecorator[Any]):
    """A member of an enum as its value."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: type[Enum]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: Enum | None, dialect: Dialect) -> str | None:
        return None if value is None else str(value.value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else self.kind(value)


class Roles(TypeDecorator[frozenset[Role]]):
    """A set of roles as their names, in order, separated by spaces."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: frozenset[Role] | None, dialect: Dialect) -> str | None:
        return None if value is None else " ".join(sorted(role.value for role in value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> frozenset[Role] | None:
        return None if value is None else frozenset(Role(name) for name in value.split())


class UtcTime(TypeDecorator[datetime]):
    """A moment as ISO text in UTC, to the microsecond: readable, and in order when compared as text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be stored")
        return value.astimezone(timezone.utc).isoformat(timespec="microseconds")

    def process_result_value(self, value: str | None, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value)


metadata = MetaData()

models = Table(
    "models",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("format", Choice(ModelFormat), nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("uploaded_at", UtcTime, nullable=False),
    Index("ix_models_digest", "digest", unique=True),
    sqlite_autoincrement=True,
)

calibrations = Table(
    "calibrations",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("entries", Integer, nullable=False),
    Column("uploaded_at", UtcTime, nullable=False),
    Index("ix_calibrations_digest", "digest", unique=True),
    sqlite_autoincrement=True,
)

engines = Table(
    "engines",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("key", Text, nullable=False),
    Column("blob", Text, nullable=False),
    Column("model", Text, ForeignKey("models.digest")),
    Column("calibration", Text, ForeignKey("calibrations.digest")),
    Column("options", Encoded(BuildOptions), nullable=False),
    Column("built", Encoded(BuiltEngine), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("damaged_at", UtcTime),
    Index("ix_engines_name_version", "name", "version", unique=True),
    Index("ix_engines_name", "name"),
    Index("ix_engines_key", "key"),
    Index("ix_engines_model", "model"),
    Index("ix_engines_calibration", "calibration"),
    sqlite_autoincrement=True,
)

engine_names = Table(
    "engine_names",
    metadata,
    Column("name", Text, primary_key=True),
    Column("last_version", Integer, nullable=False),  # stays when engines are deleted: no version is given twice
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("model", Text, nullable=False),  # no foreign key: a finished job outlives its model
    Column("calibration", Text),
    Column("options", Encoded(BuildOptions), nullable=False),
    Column("state", Choice(JobState), nullable=False),
    Column("stage", Choice(Stage)),
    Column("attempt", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("engine", Text),
    Column("reused", Boolean, nullable=False),
    Column("failure", Encoded(Failure)),
    Column("worker", Text),
    Column("created_at", UtcTime, nullable=False),
    Column("started_at", UtcTime),
    Column("finished_at", UtcTime),
    Column("heartbeat_at", UtcTime),
    Column("revision", Integer, nullable=False),
    Index("ix_jobs_id", "id", unique=True),
    Index("ix_jobs_state", "state"),
    Index("ix_jobs_name", "name"),
    Index("ix_jobs_name_state", "name", "state"),
    sqlite_autoincrement=True,
)

job_events = Table(
    "job_events",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("job", Text, ForeignKey("jobs.id"), nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("kind", Choice(EventKind), nullable=False),
    Column("stage", Choice(Stage)),
    Column("message", Text, nullable=False),
    Column("state", Choice(JobState)),
    Index("ix_job_events_job", "job"),
    sqlite_autoincrement=True,
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("job", Text, ForeignKey("jobs.id"), nullable=False),
    Column("url", Text, nullable=False),
    Column("state", Choice(DeliveryState), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("status", Integer),
    Column("error", Text),
    Column("next_at", UtcTime),
    Index("ix_webhooks_job", "job", unique=True),
    Index("ix_webhooks_state", "state"),
    sqlite_autoincrement=True,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", Text, primary_key=True),
    Column("request", Text, nullable=False),  # digest of what was asked for under the key
    Column("job", Text, ForeignKey("jobs.id"), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Index("ix_idempotency_keys_created_at", "created_at"),
)

counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Integer, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("roles", Roles, nullable=False),
    Column("requests_per_s", Float),
    Column("max_body_mib", Integer),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("last_used_at", UtcTime),
    Column("revoked_at", UtcTime),  # a revoked key stays: the audit log names it
    Index("ix_api_keys_id", "id", unique=True),
    Index("ix_api_keys_digest", "digest", unique=True),
    Index("ix_api_keys_name", "name"),
    sqlite_autoincrement=True,
)


def as_domain(kind: type[T], row: Row[Any]) -> T:
    """The domain value that a whole row holds; its fields are the columns but `seq`."""
    return kind(**{name: value for name, value in row._mapping.items() if name != "seq"})
