"""Webhooks: what is to be told of which job, and what came of it. Several workers may deliver."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import Row, or_, select, update

from app.domain.jobs import EventKind
from app.domain.webhooks import Delivery, DeliveryState
from app.storage.database import Database
from app.storage.history import read_job, tell
from app.storage.jobs import utc_now
from app.storage.tables import webhooks

IMPLAUSIBLE = timedelta(days=1)  # no attempt is put off for so long: the clock was set back meanwhile


class Webhooks:
    def __init__(self, database: Database, now: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._now = now

    def of(self, job_id: str) -> Delivery | None:
        """The job's webhook; None when it has none."""
        with self._database.reader() as connection:
            row = connection.execute(select(webhooks).where(webhooks.c.job == job_id)).one_or_none()
        return None if row is None else _delivery(row)

    def claim(self, lease_s: float) -> Delivery | None:
        """A webhook whose time has come, for this caller alone; it comes again when `settle` is not called in time."""
        now = self._now()
        is_due = or_(webhooks.c.next_at <= now, webhooks.c.next_at > now + IMPLAUSIBLE)
        with self._database.reader() as connection:  # a look costs no write
            due = select(webhooks.c.seq).where(webhooks.c.state == DeliveryState.PENDING, is_due)
            seq = connection.scalar(due.order_by(webhooks.c.next_at).limit(1))
        if seq is None:
            return None
        taken = (
            update(webhooks)
            .where(webhooks.c.seq == seq, webhooks.c.state == DeliveryState.PENDING, is_due)
            .values(next_at=now + timedelta(seconds=lease_s), attempts=webhooks.c.attempts + 1)
            .returning(*webhooks.c)
        )
        with self._database.writer() as connection:
            row = connection.execute(taken).one_or_none()
        return None if row is None else _delivery(row)

    def settle(self, claimed: Delivery, status: int | None, error: str | None, again_in_s: float | None) -> None:
        """Record what came of an attempt; nothing, if the job has moved since.

        Args:
            error: None: it was delivered.
            again_in_s: None: it is not tried again.
        """
        now = self._now()
        state = DeliveryState.DELIVERED if error is None else DeliveryState.FAILED
        if error is not None and again_in_s is not None:
            state = DeliveryState.PENDING
        next_at = now + timedelta(seconds=again_in_s or 0) if state is DeliveryState.PENDING else None
        settled = (
            update(webhooks)
            .where(webhooks.c.job == claimed.job, webhooks.c.state == DeliveryState.PENDING)
            .where(webhooks.c.attempts == claimed.attempts)
            .values(state=state, status=status, error=error, next_at=next_at)
            .returning(webhooks.c.seq)
        )
        message = f"Webhook {state.value}: {error or f'answered {status}'}."
        with self._database.writer() as connection:
            if connection.execute(settled).one_or_none() is not None:
                job = read_job(connection, claimed.job)
                tell(connection, job.id, EventKind.STEP, job.stage, now, message)


def _delivery(row: Row[tuple[object, ...]]) -> Delivery:
    return Delivery(**{name: value for name, value in row._mapping.items() if name != "seq"})
