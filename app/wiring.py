"""Settings in, connected objects out."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import TextIO

from app import __version__, presence
from app.access import policy
from app.access.audit import AuditLog
from app.access.door import Door
from app.access.keyring import KeyRing
from app.api.body_room import BodyRoom
from app.api.services import Services
from app.backends import registry
from app.backends.memory import available_bytes
from app.build.inspection import inspect_model
from app.build.inspections import Inspections, Kill
from app.domain.builds import Facts, SourceModel
from app.domain.errors import BackupRefused, InvalidSetting
from app.domain.jobs import Failure
from app.domain.model_facts import ModelFacts
from app.intake import Intake
from app.loading import EngineLoader
from app.prebuilt import Prebuilt
from app.retention import Retention
from app.serving.pool import EnginePool
from app.serving.service import InferenceService
from app.serving.warmer import Warmer
from app.settings import Settings
from app.storage import backup
from app.storage.archives import ArchiveLimits
from app.storage.artefacts import ArtefactStore
from app.storage.backup import Backup
from app.storage.catalogue import Catalogue
from app.storage.database import Database, checked_url, migrate
from app.storage.feed import JobFeed
from app.storage.jobs import JobQueue
from app.storage.keys import KeyStore
from app.storage.old_jobs import OldJobs
from app.storage.remembered import WarmFile
from app.storage.similar import BuildHistory
from app.storage.watch import RevisionWatch
from app.storage.webhooks import Webhooks
from app.webhook_wiring import webhook_rules, webhooks_delivered
from app.worker import Worker


def prepare(settings: Settings) -> None:
    """Make the data folder and bring the database to this version. Safe in several processes at once.

    Raises:
        InvalidSetting: this user cannot have such a folder.
    """
    with _folder_errors(settings):
        settings.root.mkdir(parents=True, exist_ok=True)
        made = (settings.artefacts_dir, settings.work_dir, settings.workers_dir, settings.logs_dir)
        for folder in (*made, settings.scratch_dir):
            folder.mkdir(exist_ok=True)
        _remove_older(settings.scratch_dir, settings.orphan_age_s)
        os.umask(0o077)  # uploads and engines are nobody else's business
        migrate(settings.database, settings.root / "migrate.lock")


def claimed(settings: Settings) -> TextIO:
    """Make the data folder and hold it as its only server, until the result is closed.

    Raises:
        InvalidSetting: as `prepare`.
        StartRefused: another server holds it.
    """
    with _folder_errors(settings):
        settings.root.mkdir(parents=True, exist_ok=True)
        return presence.claimed(settings.serve_lock)


@contextmanager
def _folder_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidSetting(
            f"The data folder {settings.root} cannot be used: {error.filename}: {error.strerror}.",
            hint="Name a folder that this user may make and write to, by --data-dir or JETFORGE_DATA_DIR.",
        ) from error


@contextmanager
def connected_services(settings: Settings) -> Iterator[Services]:
    """Everything that the web application works with."""
    shutil.rmtree(settings.trials_dir, ignore_errors=True)  # of a server that was killed
    database = Database(settings.database)
    store = artefacts(settings)
    catalogue, queue = Catalogue(database), JobQueue(database)
    intake = Intake(catalogue, queue, registry.chosen, limits(settings), webhook_rules(settings))
    budget = budget_bytes(settings)
    pool = EnginePool(
        load=EngineLoader(store, catalogue, intake.rebuild if settings.rebuild_stale else None),
        budget_bytes=budget,
        keep_alive_s=settings.keep_alive_s,
        contexts=settings.contexts,
        queue_rows_max=settings.queue_rows_max,
        free_bytes=_free_bytes,
    )
    inspections = Inspections(
        partial(_inspected, store, settings), settings.cache_dir / "inspections", _inspected_under
    )
    file = WarmFile(settings.warm_file) if settings.restore_warm else None
    with closing(database), closing(inspections), _watched(database) as (keys, watch):
        inference = InferenceService(catalogue.engine, pool, changes=watch.count)
        yield Services(
            settings=settings,
            store=store,
            catalogue=catalogue,
            queue=queue,
            intake=intake,
            retention=Retention(settings, store, catalogue, OldJobs(database)),
            inspections=inspections,
            inference=inference,
            warmer=Warmer(inference, settings.pinned_refs, file),
            workers_alive=_alive(settings),
            history=BuildHistory(database, _facts),
            prebuilt=Prebuilt(
                catalogue,
                registry.chosen,
                settings.trials_dir,
                timeout_s=settings.engine_trial_s,
                budget_bytes=budget,
            ),
            feed=JobFeed(database),
            webhooks=Webhooks(database),
            watch=partial(RevisionWatch, database),
            door=policy.door(settings, keys),
            audit=AuditLog(settings.audit_dir, settings.audit_mib << 20),
            bodies=BodyRoom(settings.bodies_mib << 20 or available_bytes() // 4),
        )


@contextmanager
def _watched(database: Database) -> Iterator[tuple[KeyRing, RevisionWatch]]:
    """The access keys, and what tells whether anything was written."""
    keys = KeyRing(KeyStore(database), partial(RevisionWatch, database))
    keys.start()
    with closing(keys), closing(RevisionWatch(database)) as watch:
        yield keys, watch


@dataclass(frozen=True)
class Copies:
    """What a replica works with."""

    settings: Settings
    inference: InferenceService
    door: Door
    bodies: BodyRoom


@contextmanager
def connected_copies(settings: Settings) -> Iterator[Copies]:
    """The same engines in another process of the service, loaded and given up as that one says."""
    database = Database(settings.database)
    catalogue = Catalogue(database)
    pool = EnginePool(
        load=EngineLoader(artefacts(settings), catalogue, None),
        budget_bytes=sys.maxsize,
        keep_alive_s=0,
        contexts=settings.contexts,
        queue_rows_max=settings.queue_rows_max,
    )
    with closing(database), _watched(database) as (keys, watch):
        inference = InferenceService(catalogue.engine, pool, changes=watch.count)
        # Its bodies are small, and those that do not arrive soon are handed back.
        yield Copies(settings, inference, policy.door(settings, keys), BodyRoom(math.inf))


@contextmanager
def connected_keys(settings: Settings) -> Iterator[KeyStore]:
    """The stored keys, for the command that makes and revokes them."""
    database = Database(settings.database)
    try:
        yield KeyStore(database)
    finally:
        database.close()


def back_up(settings: Settings, target: Path) -> Backup:
    """One file with all that the service holds; it may run meanwhile."""
    if not has_database(settings):
        raise BackupRefused(f"{settings.root} holds no job database.", hint="Name the service's folder: --data-dir.")
    store = ArtefactStore(settings.artefacts_dir)
    return backup.back_up(_database(settings), store, settings.logs_dir, settings.root, target, __version__)


def restore(settings: Settings, source: Path) -> Backup:
    """Fill an empty data folder from a backup, and bring it to this version."""
    with _folder_errors(settings):
        settings.root.mkdir(parents=True, exist_ok=True)
    store = ArtefactStore(settings.artefacts_dir, settings.min_free_mib << 20)
    found = backup.restore(source, _database(settings), store, settings.logs_dir)
    prepare(settings)
    return found


def has_database(settings: Settings) -> bool:
    """Whether a service has ever used the data folder."""
    return _database(settings).exists()


def _database(settings: Settings) -> Path:
    return Path(checked_url(settings.database).database or "")


@contextmanager
def connected_worker(settings: Settings) -> Iterator[Worker]:
    """A worker over the same database and artefacts."""
    database = Database(settings.database)
    store = artefacts(settings)
    try:
        catalogue, queue = Catalogue(database), JobQueue(database)
        with webhooks_delivered(settings, database):
            yield Worker(settings, store, catalogue, queue, registry.chosen, BuildHistory(database, _facts))
    finally:
        database.close()


def artefacts(settings: Settings) -> ArtefactStore:
    return ArtefactStore(settings.artefacts_dir, settings.min_free_mib << 20, settings.stored_mib_max << 20)


def limits(settings: Settings) -> ArchiveLimits:
    return ArchiveLimits(
        entries_max=settings.max_calibration_entries, unpacked_bytes_max=settings.max_calibration_mib << 20
    )


def budget_bytes(settings: Settings) -> int:
    """Memory that warm engines may take: the setting, or half of what is free now, of the GPU or of the system,
    whichever is less."""
    return settings.engine_memory_mib << 20 or min(map(_free_bytes, registry.available()), default=0) // 2


def _free_bytes(backend: str) -> int:
    return registry.backend(backend).free_bytes()


def _facts(backend: str) -> Facts:
    return registry.chosen(backend).facts()


def _alive(settings: Settings) -> Callable[[], int]:
    return lambda: presence.workers_alive(settings.workers_dir)


def _inspected(
    store: ArtefactStore, settings: Settings, model: SourceModel, on_start: Callable[[Kill], None]
) -> ModelFacts | Failure:
    return inspect_model(
        store.path(model.digest),
        model.format,
        settings.scratch_dir,
        settings.inspect_timeout_s,
        require_confinement=settings.require_confinement,
        on_start=on_start,
    )


@cache
def _inspected_under() -> str:
    """All but the model that decides what an inspection tells: what is installed here."""
    runtimes = [registry.backend(name).facts() for name in registry.available()]
    return f"{__version__}; {_version('torch')}; {_version('onnx')}; {runtimes}"


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"


def _remove_older(folder: Path, age_s: float) -> None:
    """Remove what a process that was killed has left in a folder."""
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime < age_s:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
