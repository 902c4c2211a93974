"""Settings in, connected objects out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from app.api.services import Services
from app.backends import registry
from app.backends.base import LoadedEngine
from app.device import memory_bytes
from app.domain.builds import EngineRecord
from app.domain.errors import EngineStale, EngineUnloadable
from app.domain.jobs import Job
from app.intake import Intake
from app.serving.pool import EnginePool
from app.serving.service import InferenceService
from app.serving.warmer import Warmer
from app.settings import Settings
from app.storage.archives import ArchiveLimits
from app.storage.artefacts import ArtefactStore
from app.storage.catalogue import Catalogue
from app.storage.database import Database, migrate
from app.storage.jobs import JobQueue
from app.storage.remembered import WarmFile
from app.worker import Worker, workers_alive


def prepare(settings: Settings) -> None:
    """Make the data folder and bring the database to this version. Safe in several processes at once."""
    settings.root.mkdir(parents=True, exist_ok=True)
    for folder in (settings.artefacts_dir, settings.work_dir, settings.workers_dir, settings.logs_dir):
        folder.mkdir(exist_ok=True)
    os.umask(0o077)  # uploads and engines are nobody else's business
    migrate(settings.database, settings.root / "migrate.lock")


@contextmanager
def connected_services(settings: Settings) -> Iterator[Services]:
    """Everything that the web application works with."""
    database = Database(settings.database)
    store = ArtefactStore(settings.artefacts_dir, settings.min_free_mib << 20)
    catalogue, queue = Catalogue(database), JobQueue(database)
    intake = Intake(catalogue, queue, registry.chosen, limits(settings))
    pool = EnginePool(
        load=partial(load_engine, store, intake.rebuild if settings.rebuild_stale else None),
        budget_bytes=budget_bytes(settings),
        keep_alive_s=settings.keep_alive_s,
        contexts=settings.contexts,
        queue_rows_max=settings.queue_rows_max,
    )
    inference = InferenceService(catalogue.engine, pool)
    file = WarmFile(settings.warm_file) if settings.restore_warm else None
    try:
        yield Services(
            settings=settings,
            store=store,
            catalogue=catalogue,
            queue=queue,
            intake=intake,
            inference=inference,
            warmer=Warmer(inference, settings.pinned_refs, file),
            workers_alive=_alive(settings),
        )
    finally:
        database.close()


@contextmanager
def connected_worker(settings: Settings) -> Iterator[Worker]:
    """A worker over the same database and artefacts."""
    database = Database(settings.database)
    store = ArtefactStore(settings.artefacts_dir, settings.min_free_mib << 20)
    try:
        yield Worker(settings, store, Catalogue(database), JobQueue(database), registry.chosen)
    finally:
        database.close()


def load_engine(
    store: ArtefactStore, rebuild: Callable[[EngineRecord], Job | None] | None, engine: EngineRecord
) -> LoadedEngine:
    """Load a published engine, if it is intact and still valid on this device.

    Args:
        rebuild: queues the build of a stale engine; None = nobody does.

    Raises:
        EngineStale: it was built under other facts.
        EngineUnloadable: its file is damaged, or the runtime refuses it.
    """
    backend = registry.backend(engine.built.facts.backend)
    now, then = backend.facts(), engine.built.facts
    if now != then:
        job = rebuild(engine) if rebuild is not None else None
        raise EngineStale(
            f"The engine {engine.ref} was built for {then.backend} {then.backend_version} on {then.device};"
            f" this is {now.backend} {now.backend_version} on {now.device}.",
            hint=f"It is being built again: GET /jobs/{job.id}. Then /infer/{engine.name} works again."
            if job is not None
            else f"Build it again: curl -F name={engine.name} -F model_id={engine.model} …/jobs.",
        )
    if not store.verify(engine.blob):
        raise EngineUnloadable(
            f"The file of engine {engine.ref} is damaged.",
            hint=f"Delete the engine and build it again from model_id={engine.model}.",
        )
    return backend.load(store.path(engine.blob))


def limits(settings: Settings) -> ArchiveLimits:
    return ArchiveLimits(
        entries_max=settings.max_calibration_entries, unpacked_bytes_max=settings.max_calibration_mib << 20
    )


def budget_bytes(settings: Settings) -> int:
    """Memory that warm engines may take: the setting, or half of what is free now."""
    return settings.engine_memory_mib << 20 or memory_bytes()["MemAvailable"] // 2


def _alive(settings: Settings) -> Callable[[], int]:
    return lambda: workers_alive(settings.workers_dir)
