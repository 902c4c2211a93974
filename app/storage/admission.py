"""How a job enters the queue: within a caller's transaction, once for an idempotency key, with its sources stored."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert, select

from app.domain.builds import BuildOptions, Digest
from app.domain.errors import CalibrationNotFound, IdempotencyConflict, ModelNotFound
from app.domain.jobs import EventKind, Job, JobState
from app.storage.history import read_job, tell
from app.storage.tables import calibrations, idempotency_keys, jobs, models
from app.storage.webhook_rows import register

KEYS_KEPT = timedelta(hours=24)


def known_job(connection: Connection, idempotency: tuple[str, str] | None, now: datetime) -> Job | None:
    """The job that the key was used for within a day; None when it is new, or there is no key.

    Raises:
        IdempotencyConflict: it was used for another request.
    """
    if idempotency is None:
        return None
    key, request = idempotency
    connection.execute(delete(idempotency_keys).where(idempotency_keys.c.created_at < now - KEYS_KEPT))
    known = connection.execute(select(idempotency_keys).where(idempotency_keys.c.key == key)).one_or_none()
    if known is None:
        return None
    if known.request != request:
        raise IdempotencyConflict(
            f"The Idempotency-Key was used for another request, which made the job {known.job}.",
            hint="Send a new key with a new request.",
        )
    return read_job(connection, known.job)


def admit(
    connection: Connection,
    name: str,
    model: Digest,
    calibration: Digest | None,
    options: BuildOptions,
    idempotency: tuple[str, str] | None,
    now: datetime,
    webhook: str | None = None,
) -> Job:
    """Add a waiting job with its webhook, and keep the key that it came under.

    Raises:
        ModelNotFound, CalibrationNotFound: not in the catalogue.
    """
    check_sources(connection, model, calibration)
    job_id = secrets.token_hex(8)
    added = insert(jobs).values(
        id=job_id,
        name=name,
        model=model,
        calibration=calibration,
        options=options,
        state=JobState.QUEUED,
        attempt=0,
        cancel_requested=False,
        reused=False,
        created_at=now,
        revision=0,
    )
    connection.execute(added)
    register(connection, job_id, webhook)
    if idempotency is not None:
        key, request = idempotency
        connection.execute(insert(idempotency_keys).values(key=key, request=request, job=job_id, created_at=now))
    return tell(connection, job_id, EventKind.STATE, None, now, "Queued.")


def check_sources(connection: Connection, model: Digest, calibration: Digest | None) -> None:
    """Refuse a job whose model or calibration set is not stored, or no longer.

    Raises:
        ModelNotFound, CalibrationNotFound
    """
    if connection.scalar(select(models.c.seq).where(models.c.digest == model)) is None:
        raise ModelNotFound(f"The model {model} is not stored.", hint="Upload it, then send the job again.")
    if calibration is None:
        return
    if connection.scalar(select(calibrations.c.seq).where(calibrations.c.digest == calibration)) is None:
        raise CalibrationNotFound(
            f"The calibration set {calibration} is not stored.", hint="Upload it, then send the job again."
        )
