"""Settings in, connected objects out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import metadata
from pathlib import Path

from app import __version__
from app.api.services import Services
from app.backends import registry
from app.backends.base import LoadedEngine
from app.build.inspection import inspect_model
from app.build.inspections import Inspections, Kill
from app.device import memory_bytes
from app.domain.builds import EngineRecord, SourceModel
from app.domain.errors import EngineStale, EngineUnloadable
from app.domain.jobs import Failure, Job
from app.domain.model_facts import ModelFacts
from app.intake import Intake
from app.serving.pool import EnginePool
from app.serving.service import InferenceService
from app.settings import Settings
from app.storage.archives import ArchiveLimits
from app.storage.artefacts import ArtefactStore
from app.storage.catalogue import Catalogue
from app.storage.database import Database, migrate
from app.storage.jobs import JobQueue
from app.worker import Worker, workers_alive


def prepare(settings: Settings) -> None:
    """Make the data folder and bring the database to this version. Safe in several processes at once."""
    settings.root.mkdir(parents=True, exist_ok=True)
    made = (settings.artefacts_dir, settings.work_dir, settings.workers_dir, settings.logs_dir, settings.scratch_dir)
    for folder in made:
        folder.mkdir(exist_ok=True)
    _remove_older(settings.scratch_dir, settings.orphan_age_s)
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
    inspections = Inspections(
        partial(_inspected, store, settings), settings.cache_dir / "inspections", _inspected_under
    )
    try:
        yield Services(
            settings=settings,
            store=store,
            catalogue=catalogue,
            queue=queue,
            intake=intake,
            inference=InferenceService(catalogue.engine, pool),
            inspections=inspections,
            workers_alive=_alive(settings),
        )
    finally:
        inspections.close()
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
