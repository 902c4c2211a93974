"""JobFeed: the histories of all jobs as one, for who follows every job at once."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from app.domain.jobs import EventKind, JobEvent
from app.storage.database import Database
from app.storage.tables import job_events, jobs


@dataclass(frozen=True)
class FeedLine:
    """A line of some job's history, with what a reader of all jobs needs to know of the job."""

    event: JobEvent
    name: str  # of the engine that the job builds
    engine: str | None  # "name:version" once the job has succeeded


class JobFeed:
    def __init__(self, database: Database) -> None:
        self._database = database

    def last_seq(self) -> int:
        """The number of the newest line; 0 when there is none."""
        with self._database.reader() as connection:
            return connection.scalar(select(func.max(job_events.c.seq))) or 0

    def after(self, seq: int, limit: int, *, with_steps: bool = False) -> list[FeedLine]:
        """Lines after that number, in their order.

        Args:
            with_steps: also what is told within a stage.
        """
        query = (
            select(job_events, jobs.c.name, jobs.c.engine)
            .join(jobs, jobs.c.id == job_events.c.job)
            .where(job_events.c.seq > seq)
            .order_by(job_events.c.seq)
            .limit(limit)
        )
        if not with_steps:
            query = query.where(job_events.c.kind != EventKind.STEP)
        with self._database.reader() as connection:
            return [_line(dict(row._mapping)) for row in connection.execute(query)]


def _line(columns: dict[str, object]) -> FeedLine:
    name, engine = columns.pop("name"), columns.pop("engine")
    return FeedLine(JobEvent(**columns), str(name), None if engine is None else str(engine))  # type: ignore[arg-type]
