"""The web application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from app import __version__, room
from app.api import (
    audit,
    calibrations,
    cors,
    device,
    engine_uploads,
    engines,
    error_page,
    feed,
    infer,
    jobs,
    metrics,
    models,
    previews,
    problems,
    status,
    upkeep,
    v2,
)
from app.api.access import AccessMiddleware
from app.api.body_room import HeldBodies
from app.api.document import DocumentedApp
from app.api.events import Changes
from app.api.observed import Observed, RequestCounts
from app.api.queries import KNOWN_ONLY
from app.api.services import Services
from app.api.shortcut import Shortcut
from app.api.unchanged import Tags, Unchanged

DESCRIPTION = """Turns uploaded networks into engines on the device they will run on, proves them against their
source, and serves them warm. Errors are RFC 9457 problems with `code`, `detail` and `hint`."""

# FastAPI's own would look for a provider at each request; older versions ignore it.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}


def create_app(services: Services) -> FastAPI:
    """The application over connected services. Its lifespan loads and closes the warm engines, not the services."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        keeping_up = asyncio.create_task(upkeep.keep_up(services))
        async with room.listening(services.settings.room_socket, services.inference.free_up):
            services.warmer.start()
            yield
        keeping_up.cancel()
        app.state.changes.close()
        app.state.watch.close()
        await services.warmer.close()
        await services.inference.close()

    app = DocumentedApp(
        title="jetforge", version=__version__, description=DESCRIPTION, lifespan=lifespan, telemetry=NO_TELEMETRY
    )
    app.state.services = services
    app.state.changes = Changes(services.queue.revision)
    app.state.requests = RequestCounts()
    app.state.feed = feed.Feed(
        services.feed,
        app.state.changes,
        services.inference.events,
        services.inference.states,
        streams_max=services.settings.event_streams_max,
    )
    app.state.metrics = metrics.MetricsPage(services, app.state.requests, app.state.feed)
    app.state.watch = services.watch()
    app.state.status = status.StatusDocument(services, app.state.watch)
    app.state.tags = Tags(services, app.state.watch, app.state.status)
    app.add_middleware(Shortcut)
    app.add_middleware(Unchanged, tags=app.state.tags)  # innermost: whoever may not ask is not told this either
    app.add_middleware(HeldBodies, room=services.bodies)
    app.add_middleware(AccessMiddleware, door=services.door, audit=services.audit)
    cors.install(app, services.settings.allowed_origins)
    # Added last, so outermost: what other layers answer is counted as well.
    app.add_middleware(Observed, counts=app.state.requests, is_logged=services.settings.log_requests)
    problems.install(app)
    for part in (jobs, models, calibrations, previews, engines, infer, status, feed, upkeep, audit):
        app.include_router(part.router, dependencies=[KNOWN_ONLY])
    # Fields that are sent in the query; what monitors add to; a protocol of others.
    for part in (engine_uploads, device, error_page, metrics, v2):
        app.include_router(part.router)
    return app
