"""How a webhook follows its job: within the transaction that adds or moves the job."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, insert, update

from app.domain.jobs import JobState
from app.domain.webhooks import DeliveryState
from app.storage.tables import webhooks


def register(connection: Connection, job_id: str, url: str | None) -> None:
    """Give the job a webhook, in the caller's transaction."""
    if url is not None:
        connection.execute(insert(webhooks).values(job=job_id, url=url, state=DeliveryState.WAITING, attempts=0))


def follow(connection: Connection, job_id: str, state: JobState, at: datetime) -> None:
    """Have the job's webhook sent at its end, and wait again when it is queued again."""
    connection.execute(
        update(webhooks)
        .where(webhooks.c.job == job_id)
        .values(
            state=DeliveryState.PENDING if state.is_final else DeliveryState.WAITING,
            next_at=at if state.is_final else None,
            attempts=0,
            status=None,
            error=None,
        )
    )
