"""The queue of build jobs, and their history."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TypeAlias

from sqlalchemy import Connection, func, select, update

from app.domain.builds import BuildOptions, Digest, EngineRecord, Publication
from app.domain.errors import EngineNotFound, InvalidRequest, JobStateConflict
from app.domain.jobs import EventKind, Failure, Job, JobEvent, JobState, Stage
from app.storage.admission import admit, check_sources, known_job
from app.storage.catalogue import is_published, publish
from app.storage.database import Database
from app.storage.history import check_follows, give_back, move, pulse, read_job, read_revision, take_lost, tell
from app.storage.tables import as_domain, job_events, jobs

Idempotency: TypeAlias = "tuple[str, str] | None"  # a client's key, and the digest of what it asks for
Jobs = list[Job]  # within JobQueue `list` is a method


class JobLost(Exception):
    """The worker no longer holds the job: it was requeued, or has ended."""


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


class JobQueue:
    """Jobs in the order they came. Each call is one transaction."""

    def __init__(
        self,
        database: Database,
        now: Callable[[], datetime] = utc_now,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._now = now
        self._monotonic_s = monotonic_s
        # By job, attempt and heartbeat: when this process first saw it.
        self._seen_s: dict[tuple[str, int, datetime | None], float] = {}

    # --- clients -----------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        model: Digest,
        calibration: Digest | None,
        options: BuildOptions,
        idempotency: Idempotency = None,
        webhook: str | None = None,
    ) -> Job:
        """Queue a build.

        Args:
            idempotency: within a day the same two give the same job.
            webhook: URL that is told of the job's end.

        Raises:
            ModelNotFound, CalibrationNotFound: not in the catalogue.
            IdempotencyConflict: the key was used for another request.
        """
        now = self._now()
        with self._database.writer() as connection:
            known = known_job(connection, idempotency, now)
            return known or admit(connection, name, model, calibration, options, idempotency, now, webhook)

    def add_finished(
        self, publication: Publication, idempotency: Idempotency = None, webhook: str | None = None
    ) -> Job:
        """Record a build that succeeded at once, because an engine of its key exists.

        Should that engine have been deleted in the meantime, its bytes may be gone: the build is queued instead.

        Raises:
            ModelNotFound, CalibrationNotFound, IdempotencyConflict: as for `add`.
        """
        now = self._now()
        new, model = publication, publication.model
        assert model is not None  # an engine that was built
        with self._database.writer() as connection:
            known = known_job(connection, idempotency, now)
            if known:
                return known
            job = admit(connection, new.name, model, new.calibration, new.options, idempotency, now, webhook)
            if not is_published(connection, new):
                return job
            return _succeeded(connection, job, publish(connection, new, now), now, reused=True)

    def cancel(self, job_id: str) -> Job:
        """End a job that waits at once, and one that runs as soon as its worker sees the request.

        Raises:
            JobNotFound
            JobStateConflict: it has succeeded or failed.
        """
        now = self._now()
        with self._database.writer() as connection:
            job = read_job(connection, job_id)
            if job.state is JobState.CANCELLED or job.cancel_requested:
                return job
            if job.state is not JobState.RUNNING:
                return move(connection, job, JobState.CANCELLED, now, "Cancelled while it waited.")
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True))
            return tell(connection, job_id, EventKind.STEP, job.stage, now, "Asked to cancel.")

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again, with all its attempts before it.

        Raises:
            JobNotFound
            JobStateConflict: it waits, runs or has succeeded.
            ModelNotFound, CalibrationNotFound: deleted since.
        """
        with self._database.writer() as connection:
            job = read_job(connection, job_id)
            if job.state not in (JobState.FAILED, JobState.CANCELLED):
                raise JobStateConflict(
                    f"The job is {job.state.value}; only a failed or cancelled job can be retried.",
                    hint="Send a new job to build again.",
                )
            check_sources(connection, job.model, job.calibration)
            return move(connection, job, JobState.QUEUED, self._now(), "Queued again, as asked.", attempt=0)

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        with self._database.reader() as connection:
            return read_job(connection, job_id)

    def list(
        self, state: JobState | None = None, name: str | None = None, after: str | None = None, limit: int = 50
    ) -> Jobs:
        """Newest first.

        Args:
            after: id of a job; only those added before it.

        Raises:
            InvalidRequest: `after` is no job's id.
        """
        query = select(jobs).order_by(jobs.c.seq.desc()).limit(limit)
        if state is not None:
            query = query.where(jobs.c.state == state)
        if name is not None:
            query = query.where(jobs.c.name == name)
        with self._database.reader() as connection:
            if after is not None:
                seq = connection.scalar(select(jobs.c.seq).where(jobs.c.id == after))
                if seq is None:
                    raise InvalidRequest(f"after is no job's id: {after[:80]!r}.", hint="List from the start again.")
                query = query.where(jobs.c.seq < seq)
            return [as_domain(Job, row) for row in connection.execute(query)]

    def events(self, job_id: str | None = None, after_seq: int = 0, limit: int = 500) -> builtins.list[JobEvent]:
        """Lines of one job's history, or of all, in their order, after the line `after_seq`."""
        query = select(job_events).where(job_events.c.seq > after_seq).order_by(job_events.c.seq).limit(limit)
        if job_id is not None:
            query = query.where(job_events.c.job == job_id)
        with self._database.reader() as connection:
            return [JobEvent(**row._mapping) for row in connection.execute(query)]

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
        with self._database.reader() as connection:
            found = {state: count for state, count in connection.execute(query)}
        return {state: found.get(state, 0) for state in JobState}

    def revision(self) -> int:
        """A number that grows with every change of a job, engine, model or calibration set that a client can see."""
        with self._database.reader() as connection:
            return read_revision(connection)

    # --- workers -----------------------------------------------------------------------------------------------

    def claim(self, worker: str) -> Job | None:
        """Hand the oldest waiting job to a worker; None when none waits."""
        now = self._now()
        check_follows(JobState.QUEUED, JobState.RUNNING)
        oldest = select(jobs.c.seq).where(jobs.c.state == JobState.QUEUED).order_by(jobs.c.seq).limit(1)
        claimed = (
            update(jobs)
            .where(jobs.c.seq == oldest.scalar_subquery())
            .values(
                state=JobState.RUNNING,
                worker=worker,
                attempt=jobs.c.attempt + 1,
                started_at=now,
                heartbeat_at=now,
            )
            .returning(jobs.c.id, jobs.c.attempt)
        )
        with self._database.writer() as connection:
            row = connection.execute(claimed).one_or_none()
            if row is None:
                return None
            return tell(connection, row.id, EventKind.STATE, None, now, f"Running, attempt {row.attempt}.")

    def beat(self, job_id: str, worker: str) -> bool:
        """Show that the worker is at it; returns whether the job is to be cancelled. Clients see no change.

        Raises:
            JobLost: as do all calls below.
        """
        beaten = (
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.worker == worker, jobs.c.state == JobState.RUNNING)
            .values(heartbeat_at=self._now())
            .returning(jobs.c.cancel_requested)
        )
        with self._database.writer() as connection:
            row = connection.execute(beaten).one_or_none()
        if row is None:
            raise JobLost(job_id)
        return bool(row.cancel_requested)

    def advance(self, job_id: str, worker: str, kind: EventKind, stage: Stage | None, message: str) -> Job:
        """Add a line to the job's history; a stage becomes the job's, None leaves it in its own."""
        with self._database.writer() as connection:
            job = _held(connection, job_id, worker)
            if stage is not None and stage is not job.stage:
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(stage=stage))
            return tell(connection, job_id, kind, stage or job.stage, self._now(), message)

    def succeed(self, job_id: str, worker: str, publication: Publication, *, reused: bool = False) -> EngineRecord:
        """Publish the engine and end its job.

        Raises:
            EngineNotFound: it is reused, and was deleted in the meantime.
        """
        now = self._now()
        with self._database.writer() as connection:
            job = _held(connection, job_id, worker)
            if reused and not is_published(connection, publication):
                raise EngineNotFound("The engine to reuse was deleted in the meantime.", hint="Retry the job.")
            engine = publish(connection, publication, now)
            _succeeded(connection, job, engine, now, reused=reused)
            return engine

    def fail(self, job_id: str, worker: str, failure: Failure) -> Job:
        with self._database.writer() as connection:
            job = _held(connection, job_id, worker)
            return move(connection, job, JobState.FAILED, self._now(), failure.message, failure=failure)

    def cancelled(self, job_id: str, worker: str) -> Job:
        """End a job whose cancelling was asked for, now that its build has stopped."""
        with self._database.writer() as connection:
            job = _held(connection, job_id, worker)
            return move(connection, job, JobState.CANCELLED, self._now(), "Cancelled while it ran.")

    def release(self, job_id: str, worker: str) -> Job:
        """Give back a job whose worker is asked to stop; the attempt does not count."""
        with self._database.writer() as connection:
            job = _held(connection, job_id, worker)
            return give_back(connection, job, self._now(), "its worker stopped", attempt=job.attempt - 1)

    def requeue_lost(self, lost_after_s: float, attempts_max: int, is_alive: Callable[[str], bool]) -> Jobs:
        """Take jobs from workers that are gone or no longer beat; returns those jobs as they are now.

        A worker no longer beats when the job's heartbeat has not changed for `lost_after_s` on this process's own
        monotonic clock: the wall clock may jump, as it does on a device that finds its time server after the start.

        Args:
            attempts_max: a job that was started so often fails instead of waiting again.
            is_alive: whether the worker of that name still exists.
        """
        with self._database.reader() as connection:
            running = connection.execute(select(jobs).where(jobs.c.state == JobState.RUNNING)).all()
        lost = self._lost([as_domain(Job, row) for row in running], lost_after_s, is_alive)
        if not lost:
            return []
        now = self._now()
        with self._database.writer() as connection:
            moved = [take_lost(connection, job, attempts_max, now) for job in lost]
        return [job for job in moved if job is not None]

    def _lost(self, running: Jobs, lost_after_s: float, is_alive: Callable[[str], bool]) -> Jobs:
        now_s = self._monotonic_s()
        seen_s = {pulse(job): self._seen_s.get(pulse(job), now_s) for job in running}
        self._seen_s = seen_s
        return [job for job in running if now_s - seen_s[pulse(job)] >= lost_after_s or not is_alive(job.worker or "")]


def _succeeded(connection: Connection, job: Job, engine: EngineRecord, at: datetime, *, reused: bool) -> Job:
    message = f"Succeeded: {engine.ref}{', built before' if reused else ''}."
    return move(connection, job, JobState.SUCCEEDED, at, message, engine=engine.ref, reused=reused)


def _held(connection: Connection, job_id: str, worker: str) -> Job:
    held = jobs.c.id == job_id, jobs.c.worker == worker, jobs.c.state == JobState.RUNNING
    row = connection.execute(select(jobs).where(*held)).one_or_none()
    if row is None:
        raise JobLost(job_id)
    return as_domain(Job, row)
