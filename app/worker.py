"""The worker: claims a job, has it built in a child process, records what came of it."""

from __future__ import annotations

import logging
import os
import select
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from app.backends.base import Backend
from app.build import launch, tries
from app.build.workdir import BuildSpec, ProgressLine, WorkDir
from app.domain.builds import BuiltEngine, EngineRecord, Publication, engine_key
from app.domain.errors import BuildCrashed, DiskFull, ServiceError, SourceDamaged
from app.domain.jobs import EventKind, Failure, Job, Stage
from app.intake import renamed
from app.memory_need import made_room, needed
from app.presence import Presence
from app.settings import Settings
from app.storage.artefacts import ArtefactStore
from app.storage.catalogue import Catalogue
from app.storage.jobs import JobLost, JobQueue
from app.storage.similar import BuildHistory

log = logging.getLogger(__name__)

IDLE_S = 0.3  # between two looks at an empty queue
SWEEP_S = 600.0  # between two sweeps of what nobody refers to


class StopFlag:
    """Says that the worker shall stop. A signal handler may set it, which a threading.Event does not survive: its
    lock may be held by the very thread that the handler interrupts."""

    def __init__(self) -> None:
        self.is_set = False
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self) -> None:
        if not self.is_set:
            self.is_set = True
            os.write(self._writer, b".")

    def wait(self, timeout_s: float) -> None:
        """Return when it is set, or after so many seconds."""
        select.select([self._reader], [], [], timeout_s)


def thin(folder: Path, limit_bytes: int) -> None:
    """Remove the files that were not touched for longest, until the rest has at most so many bytes."""
    found = [(path, path.stat()) for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    total_bytes = sum(stat.st_size for _, stat in found)
    for path, stat in sorted(found, key=lambda entry: entry[1].st_mtime):
        if total_bytes <= limit_bytes:
            return
        path.unlink(missing_ok=True)
        total_bytes -= stat.st_size


class Worker:
    """Works through the queue, one job at a time, until asked to stop."""

    def __init__(
        self,
        settings: Settings,
        store: ArtefactStore,
        catalogue: Catalogue,
        queue: JobQueue,
        backend: Callable[[str], Backend],
        history: BuildHistory,
    ) -> None:
        self._settings = settings
        self._store = store
        self._catalogue = catalogue
        self._queue = queue
        self._backend = backend
        self._history = history
        self._stop = StopFlag()
        self._swept_at = float("-inf")

    def stop(self) -> None:
        """Finish as soon as possible; a running build goes back to the queue. Safe in a signal handler."""
        self._stop.set()

    def run(self) -> None:
        presence = Presence(self._settings.workers_dir)
        log.info("worker started", extra={"worker": presence.worker})
        try:
            while not self._stop.is_set:
                self._turn(presence)
        finally:
            presence.leave()
            log.info("worker stopped", extra={"worker": presence.worker})

    def _turn(self, presence: Presence) -> None:
        """One look at the queue; a database that is busy or a disk that is full only delays the next one."""
        try:
            self._sweep_now_and_then()
            limits = self._settings
            for job in self._queue.requeue_lost(limits.lost_after_s, limits.build_attempts, presence.is_alive):
                log.warning("job taken from a lost worker", extra={"job": job.id, "state": job.state.value})
            job_or_none = self._queue.claim(presence.worker)
        except ServiceError as error:
            log.error("queue not reachable", extra={"code": error.code, "detail": error.detail})
            self._stop.wait(5)
            return
        if job_or_none is None:
            self._stop.wait(IDLE_S)
        else:
            parts = (self._settings, self._store, self._catalogue, self._queue, self._backend, self._history)
            Build(*parts, self._stop).run(job_or_none, presence.worker)

    def _sweep_now_and_then(self) -> None:
        if time.monotonic() - self._swept_at < SWEEP_S:
            return
        self._swept_at = time.monotonic()
        thin(self._settings.cache_dir, self._settings.cache_mib << 20)
        swept = self._store.sweep(self._catalogue.digests(), self._settings.orphan_age_s)
        if swept:
            log.info("orphans swept", extra={"count": len(swept)})


class Build:
    """One job from claim to record."""

    def __init__(
        self,
        settings: Settings,
        store: ArtefactStore,
        catalogue: Catalogue,
        queue: JobQueue,
        backend: Callable[[str], Backend],
        history: BuildHistory,
        stop: StopFlag,
    ) -> None:
        self._settings = settings
        self._store = store
        self._catalogue = catalogue
        self._queue = queue
        self._backend = backend
        self._history = history
        self._stop = stop
        self._beaten_at = float("-inf")
        self._cancelled = False

    def run(self, job: Job, worker: str) -> None:
        log.info("build started", extra={"job": job.id, "engine": job.name, "attempt": job.attempt})
        try:
            self._run(job, worker)
        except JobLost:
            log.warning("job is no longer ours", extra={"job": job.id})
        except ServiceError as error:
            self._fail(job, worker, Failure(error.code, error.detail, error.hint))
        except Exception as error:
            log.exception("build failed unexpectedly", extra={"job": job.id})
            self._fail(job, worker, _defect(error))

    def _run(self, job: Job, worker: str) -> None:
        backend = self._backend(job.options.backend)
        key = engine_key(job.model, job.options, job.calibration, backend.facts())
        existing = self._catalogue.engine_by_key(key)
        if existing is not None:  # another job of the same key was first
            self._succeed(job, worker, renamed(existing, job.name), reused=True)
            return
        work = self._work_folder(job)
        spec = BuildSpec(
            job=job.id,
            backend=backend.name,
            options=job.options,
            batch_rows_max=self._settings.batch_rows_max,
            cache=str(self._settings.cache_dir),
            min_calibration_samples=self._settings.min_calibration_samples,
            format=self._catalogue.model(job.model).format,
            require_confinement=self._settings.require_confinement,
        )
        self._make_room(job, worker, backend.name)
        outcome = tries.run(
            work,
            spec,
            job.options.timeout_s or self._settings.build_timeout_s,
            backend.lighter(job.options),
            lambda line: self._tell(job, worker, line),
            lambda: self._should_stop(job, worker),
        )
        self._record(job, worker, key, work, outcome)

    def _record(
        self, job: Job, worker: str, key: str, work: WorkDir, outcome: BuiltEngine | Failure | launch.Stopped
    ) -> None:
        if isinstance(outcome, BuiltEngine):
            self._check_sources(job)  # again: what changed under the build was both its source and its reference
            self._queue.advance(job.id, worker, EventKind.STAGE, Stage.PUBLISH, "publish")
            blob = self._store.put_file(work.engine)
            publication = Publication(job.name, key, blob, job.model, job.calibration, job.options, outcome)
            self._succeed(job, worker, publication, reused=False)
            shutil.rmtree(work.root, ignore_errors=True)
        elif isinstance(outcome, Failure):
            self._fail(job, worker, outcome)
            self._thin_failed_builds()
        else:
            shutil.rmtree(work.root, ignore_errors=True)
            if self._cancelled:
                self._queue.cancelled(job.id, worker)
            else:
                self._queue.release(job.id, worker)
            log.info("build stopped", extra={"job": job.id, "cancelled": self._cancelled})

    def _succeed(self, job: Job, worker: str, publication: Publication, *, reused: bool) -> EngineRecord:
        engine = self._queue.succeed(job.id, worker, publication, reused=reused)
        log.info("build succeeded", extra={"job": job.id, "engine": engine.ref, "reused": reused})
        return engine

    def _fail(self, job: Job, worker: str, failure: Failure) -> None:
        log.warning("build failed", extra={"job": job.id, "code": failure.code, "detail": failure.message})
        try:
            self._queue.fail(job.id, worker, failure)
        except JobLost:
            log.warning("job is no longer ours", extra={"job": job.id})

    def _work_folder(self, job: Job) -> WorkDir:
        root = self._settings.work_dir / job.id
        shutil.rmtree(root, ignore_errors=True)  # of a lost attempt: a build always starts clean
        free = shutil.disk_usage(self._settings.root).free
        needed = 4 * self._store.size_bytes(job.model) + (self._settings.min_free_mib << 20)
        if free < needed:
            raise DiskFull(
                f"The build needs about {needed >> 20} MiB of disk; {free >> 20} MiB are free.",
                hint="Delete engines or models that are not needed, then retry the job.",
            )
        self._check_sources(job)
        work = WorkDir(root)
        work.create(self._store.path(job.model), self._store.path(job.calibration) if job.calibration else None)
        self._settings.logs_dir.mkdir(parents=True, exist_ok=True)
        log_file = self._settings.job_log(job.id)
        with log_file.open("a") as lines:
            lines.write(f"# attempt {job.attempt}; to repeat it by hand: {sys.executable} -m app.build {root}\n")
        os.link(log_file, work.log)  # the child appends to the job's log, which outlives the work folder
        return work

    def _check_sources(self, job: Job) -> None:
        """Refuse to build from bytes that a failing disk has changed."""
        for kind, digest in (("model", job.model), ("calibration", job.calibration)):
            if digest is not None and not self._store.verify(digest):
                raise SourceDamaged(
                    f"The stored {kind} is damaged or gone.",
                    hint=f"Upload the same file again (POST /{kind}s): that mends it. Then retry the job.",
                )

    def _make_room(self, job: Job, worker: str, backend: str) -> None:
        """Have idle engines unloaded if memory is short, and say so; a build that may lack it is tried all the same."""
        similar = self._history.similar(job.model, backend, job.options.precision)
        need = needed(similar, self._store.size_bytes(job.model))
        text, is_enough = made_room(self._settings.room_socket, need, backend)
        self._queue.advance(job.id, worker, EventKind.STEP if is_enough else EventKind.WARNING, None, text)

    def _tell(self, job: Job, worker: str, line: ProgressLine) -> None:
        self._queue.advance(job.id, worker, line.kind, line.stage, line.message)

    def _should_stop(self, job: Job, worker: str) -> bool:
        if time.monotonic() - self._beaten_at >= self._settings.heartbeat_s:
            self._beaten_at = time.monotonic()
            self._queue.beat(job.id, worker)
        self._cancelled = self._cancelled or self._queue.get(job.id).cancel_requested
        return self._cancelled or self._stop.is_set

    def _thin_failed_builds(self) -> None:
        folders = sorted(self._settings.work_dir.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for folder in folders[self._settings.keep_failed_builds :]:
            shutil.rmtree(folder, ignore_errors=True)


def _defect(error: Exception) -> Failure:
    return Failure(
        BuildCrashed.code,
        f"The worker met an unexpected error: {type(error).__name__}.",
        "The worker's log has the details; retry the job, and report it if it happens again.",
    )
