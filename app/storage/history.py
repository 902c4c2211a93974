"""How a job moves: within a caller's transaction, with its event and the revision that tells clients to look."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import sqlite

from app.domain.errors import JobNotFound, JobStateConflict, WorkerLost
from app.domain.jobs import FOLLOWS, EventKind, Failure, Job, JobState, Stage
from app.storage.tables import as_domain, counters, job_events, jobs
from app.storage.webhook_rows import follow

REVISION = "revision"
# What a job that waits knows of its attempts: nothing. The history keeps it.
WAITING: dict[str, Any] = {
    "stage": None,
    "cancel_requested": False,
    "failure": None,
    "worker": None,
    "started_at": None,
    "finished_at": None,
    "heartbeat_at": None,
}


def read_revision(connection: Connection, counter: str = REVISION) -> int:
    value: int | None = connection.scalar(select(counters.c.value).where(counters.c.name == counter))
    return value or 0


def raise_revision(connection: Connection, counter: str = REVISION) -> int:
    """Tell clients that something changed; returns the new revision."""
    raised = (
        sqlite.insert(counters)
        .values(name=counter, value=1)
        .on_conflict_do_update(index_elements=["name"], set_={"value": counters.c.value + 1})
        .returning(counters.c.value)
    )
    revision: int = connection.execute(raised).scalar_one()
    return revision


def read_job(connection: Connection, job_id: str) -> Job:
    """The job of that id.

    Raises:
        JobNotFound: there is none.
    """
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise JobNotFound(f"No job has the id {job_id[:80]!r}.", hint="GET /jobs lists the jobs.")
    return as_domain(Job, row)


def check_follows(state: JobState, following: JobState) -> None:
    """Refuse a move that no job makes.

    Raises:
        JobStateConflict: `FOLLOWS` has no such step.
    """
    if following not in FOLLOWS[state]:
        raise JobStateConflict(
            f"The job is {state.value}; it cannot become {following.value}.",
            hint="GET /jobs/{id} shows what became of it.",
        )


def move(connection: Connection, job: Job, following: JobState, at: datetime, message: str, **changes: Any) -> Job:
    """Bring the job into another state, with the columns that change with it.

    Raises:
        JobStateConflict: `FOLLOWS` has no such step.
    """
    check_follows(job.state, following)
    if following is JobState.QUEUED:
        changes = {**WAITING, **changes}
    elif following.is_final:
        changes = {"worker": None, "finished_at": at, **changes}
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(state=following, **changes))
    follow(connection, job.id, following, at)
    stage = job.stage if following.is_final else None
    return tell(connection, job.id, EventKind.STATE, stage, at, message)


def give_back(connection: Connection, job: Job, at: datetime, why: str, **changes: Any) -> Job:
    """Take a running job from its worker: it waits again, or ends if a client asked for that."""
    if job.cancel_requested:
        return move(connection, job, JobState.CANCELLED, at, f"Cancelled: {why}.")
    return move(connection, job, JobState.QUEUED, at, f"Queued again: {why}.", **changes)


def take_lost(connection: Connection, job: Job, attempts_max: int, at: datetime) -> Job | None:
    """Take a job from its lost worker; None when it has moved, or its heart has beaten, since it was read."""
    now = read_job(connection, job.id)
    if now.state is not JobState.RUNNING or pulse(now) != pulse(job):
        return None
    if job.attempt < attempts_max or now.cancel_requested:
        return give_back(connection, now, at, "its worker was lost")
    failure = Failure(
        WorkerLost.code,
        f"The worker was lost {job.attempt} times while it built this; at most {attempts_max} starts are made.",
        "The build may need more memory than the device has: free some, or build smaller shapes. Then retry the job.",
    )
    return move(connection, now, JobState.FAILED, at, failure.message, failure=failure)


def pulse(job: Job) -> tuple[str, int, datetime | None]:
    """What changes while a worker is at the job."""
    return job.id, job.attempt, job.heartbeat_at


def tell(connection: Connection, job_id: str, kind: EventKind, stage: Stage | None, at: datetime, message: str) -> Job:
    """Add a line to the job's history; returns the job as it is now."""
    raised = update(jobs).where(jobs.c.id == job_id).values(revision=raise_revision(connection)).returning(*jobs.c)
    job = as_domain(Job, connection.execute(raised).one())
    state = job.state if kind is EventKind.STATE else None
    line = {"job": job_id, "at": at, "kind": kind, "stage": stage, "message": message, "state": state}
    connection.execute(insert(job_events).values(line))
    return job
