"""From a published engine to a loaded one: intact, and still valid on this device; else it is built again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from app.backends import registry
from app.backends.base import LoadedEngine
from app.domain.builds import EngineRecord
from app.domain.errors import EngineDamaged, EngineStale
from app.domain.jobs import Job
from app.storage.artefacts import ArtefactStore
from app.storage.catalogue import Catalogue
from app.storage.jobs import utc_now

log = logging.getLogger(__name__)


class EngineLoader:
    """Loads engines for the pool, on a thread of that."""

    def __init__(
        self, store: ArtefactStore, catalogue: Catalogue, rebuild: Callable[[EngineRecord], Job | None] | None
    ) -> None:
        """
        Args:
            rebuild: queues the build of a stale or damaged engine, None where it cannot; None = nobody does.
        """
        self._store = store
        self._catalogue = catalogue
        self._rebuild = rebuild

    def __call__(self, engine: EngineRecord) -> LoadedEngine:
        """Load the engine.

        Raises:
            EngineStale: it was built under other facts.
            EngineDamaged: its bytes are not those that were stored; its file is put aside.
            EngineUnloadable: the runtime refuses it.
        """
        backend = registry.backend(engine.built.facts.backend)
        now, then = backend.facts(), engine.built.facts
        if now != then:
            raise EngineStale(
                f"The engine {engine.ref} was built for {then.backend} {then.backend_version} on {then.device};"
                f" this is {now.backend} {now.backend_version} on {now.device}.",
                hint=self._remedy(engine),
            )
        if not self._store.verify(engine.blob):
            raise self._damaged(engine)
        return backend.load(self._store.path(engine.blob))

    def _damaged(self, engine: EngineRecord) -> EngineDamaged:
        """Put the file aside first: the bytes of a new build may have the same name."""
        self._store.quarantine(engine.blob)
        self._catalogue.mark_damaged(engine.blob, utc_now())
        log.error("an engine's file is damaged", extra={"engine": engine.ref, "blob": engine.blob})
        return EngineDamaged(
            f"The file of engine {engine.ref} is damaged or missing: its bytes are not those that were stored. What is"
            " left of it was put aside.",
            hint=self._remedy(engine),
        )

    def _remedy(self, engine: EngineRecord) -> str:
        if engine.model is None:
            return (
                "It was uploaded as an engine, so there is no model to build it from again: upload one that was made"
                " on this device, or build it from its model."
            )
        job = self._rebuild(engine) if self._rebuild is not None else None
        if job is None:
            return f"Build it again: curl -F name={engine.name} -F model_id={engine.model} …/jobs."
        return f"It is being built again: GET /jobs/{job.id}. Then /infer/{engine.name} works again."
