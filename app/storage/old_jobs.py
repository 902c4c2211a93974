"""Jobs that have ended, and their end as records."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, select

from app.domain.jobs import JobState
from app.storage.database import Database
from app.storage.history import raise_revision
from app.storage.tables import idempotency_keys, job_events, jobs, webhooks

_ENDED = [state for state in JobState if state.is_final]


class OldJobs:
    """Looks for jobs that ended long ago, and forgets them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ended_before(self, moment: datetime, limit: int) -> list[str]:
        """Ids of jobs that ended before then, oldest first."""
        query = select(jobs.c.id).where(jobs.c.state.in_(_ENDED), jobs.c.finished_at < moment)
        with self._database.reader() as connection:
            return [*connection.scalars(query.order_by(jobs.c.seq).limit(limit))]

    def forget(self, job_ids: list[str]) -> list[str]:
        """Drop ended jobs with their history; those of them that wait or run again stay. Returns what went."""
        with self._database.writer() as connection:
            gone = [*connection.scalars(select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.state.in_(_ENDED)))]
            for column in (job_events.c.job, idempotency_keys.c.job, webhooks.c.job):
                connection.execute(delete(column.table).where(column.in_(gone)))
            connection.execute(delete(jobs).where(jobs.c.id.in_(gone)))
            if gone:
                raise_revision(connection)
        return gone
