"""What has served its time: surplus versions, unused uploads, old jobs with their logs, bytes that nothing names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from app.domain.errors import InUse, NotFound
from app.settings import Settings
from app.storage.artefacts import ArtefactStore
from app.storage.catalogue import Catalogue
from app.storage.jobs import utc_now
from app.storage.old_jobs import OldJobs

JOBS_AT_ONCE = 500  # in one transaction, so that no other writer waits long


class RemovalKind(str, Enum):
    ENGINE = "engine"
    MODEL = "model"
    CALIBRATION = "calibration"
    JOB = "job"
    BYTES = "bytes"  # of what was deleted, or of an upload that broke off


@dataclass(frozen=True)
class Removal:
    """One thing that goes."""

    kind: RemovalKind
    id: str  # name:version, digest or job id
    why: str
    size_bytes: int  # on the disk; 0 where only a record goes


class Retention:
    """Applies the `keep_…` settings. Nothing goes that a warm engine, an engine's source or a waiting job needs."""

    def __init__(self, settings: Settings, store: ArtefactStore, catalogue: Catalogue, jobs: OldJobs) -> None:
        self._settings = settings
        self._store = store
        self._catalogue = catalogue
        self._old_jobs = jobs

    def planned(self, in_use: Collection[str], now: datetime | None = None) -> list[Removal]:
        """What `apply` would remove now.

        Args:
            in_use: engines, as name:version, that stay whatever their age.
        """
        now = now or utc_now()
        return [
            *self._engines(in_use),
            *self._uploads(now),
            *self._jobs(now),
            *self._bytes(),
        ]

    def apply(self, in_use: Collection[str], now: datetime | None = None) -> list[Removal]:
        """Remove it; what has come into use since it was looked for stays. Returns what went."""
        now = now or utc_now()
        gone = [engine for engine in self._engines(in_use) if self._engine_went(engine)]
        gone += [upload for upload in self._uploads(now) if self._upload_went(upload)]
        gone += self._jobs_gone(self._jobs(now))
        sizes = {removal.id: removal for removal in self._bytes()}
        swept = self._store.sweep(self._catalogue.digests(), self._settings.orphan_age_s)
        return gone + [sizes[digest] for digest in swept if digest in sizes]

    def _engines(self, in_use: Collection[str]) -> list[Removal]:
        keep = self._settings.keep_versions
        if not keep:
            return []
        why = f"{keep} newer versions are kept"
        surplus = self._catalogue.surplus_engines(keep)
        return [Removal(RemovalKind.ENGINE, engine.ref, why, 0) for engine in surplus if engine.ref not in in_use]

    def _uploads(self, now: datetime) -> list[Removal]:
        days = self._settings.keep_unused_days
        if not days:
            return []
        why = f"unused, and uploaded more than {days:g} days ago"
        before = now - timedelta(days=days)
        return [
            *(Removal(RemovalKind.MODEL, model.digest, why, 0) for model in self._catalogue.unused_models(before)),
            *(
                Removal(RemovalKind.CALIBRATION, calibration.digest, why, 0)
                for calibration in self._catalogue.unused_calibrations(before)
            ),
        ]

    def _jobs(self, now: datetime) -> list[Removal]:
        days = self._settings.keep_jobs_days
        if not days:
            return []
        why = f"ended more than {days:g} days ago"
        ended = self._old_jobs.ended_before(now - timedelta(days=days), JOBS_AT_ONCE)
        return [Removal(RemovalKind.JOB, job, why, self._log_bytes(job)) for job in ended]

    def _bytes(self) -> list[Removal]:
        why = "nothing refers to it"
        orphans = self._store.orphans(self._catalogue.digests(), self._settings.orphan_age_s)
        return [Removal(RemovalKind.BYTES, digest, why, size) for digest, size in orphans.items()]

    def _log_bytes(self, job: str) -> int:
        log = self._settings.job_log(job)
        return log.stat().st_size if log.is_file() else 0

    def _engine_went(self, engine: Removal) -> bool:
        name, _, version = engine.id.partition(":")
        try:
            self._catalogue.delete_engine(name, int(version))
        except NotFound:
            return False
        return True

    def _upload_went(self, upload: Removal) -> bool:
        is_model = upload.kind is RemovalKind.MODEL
        delete = self._catalogue.delete_model if is_model else self._catalogue.delete_calibration
        try:
            delete(upload.id)
        except (InUse, NotFound):
            return False
        return True

    def _jobs_gone(self, jobs: list[Removal]) -> list[Removal]:
        forgotten = set(self._old_jobs.forget([job.id for job in jobs]))
        for job in forgotten:
            self._settings.job_log(job).unlink(missing_ok=True)
        return [job for job in jobs if job.id in forgotten]
