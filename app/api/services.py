"""What the routes work with. Built by `wiring`, handed to `create_app`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol, cast

from fastapi import Depends, Request

from app.access.audit import AuditLog
from app.access.door import Door
from app.api.body_room import BodyRoom
from app.build.inspections import Inspections
from app.intake import Intake
from app.prebuilt import Prebuilt
from app.retention import Retention
from app.serving.service import InferenceService
from app.serving.warmer import Warmer
from app.settings import Settings
from app.storage.artefacts import ArtefactStore
from app.storage.catalogue import Catalogue
from app.storage.feed import JobFeed
from app.storage.jobs import JobQueue
from app.storage.similar import BuildHistory
from app.storage.watch import RevisionWatch
from app.storage.webhooks import Webhooks


class Inferring(Protocol):
    """What inference alone works with."""

    @property
    def settings(self) -> Settings: ...

    @property
    def inference(self) -> InferenceService: ...

    @property
    def bodies(self) -> BodyRoom: ...


@dataclass(frozen=True)
class Services:
    settings: Settings
    store: ArtefactStore
    catalogue: Catalogue
    queue: JobQueue
    intake: Intake
    inference: InferenceService
    retention: Retention
    inspections: Inspections
    warmer: Warmer
    workers_alive: Callable[[], int]
    history: BuildHistory
    prebuilt: Prebuilt
    feed: JobFeed
    webhooks: Webhooks
    watch: Callable[[], RevisionWatch]  # a new one; whoever takes it closes it
    door: Door
    audit: AuditLog
    bodies: BodyRoom


def services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


async def _services(request: Request) -> Services:  # a plain function would cost each request a hop to a thread
    return services(request)


Wired = Annotated[Services, Depends(_services)]
