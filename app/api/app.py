"""The web application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import __version__
from app.api import calibrations, device, engines, feed, infer, jobs, metrics, models, problems, status, v2
from app.api.events import Changes
from app.api.observed import Observed, RequestCounts
from app.api.services import Services
from app.api.unchanged import Tags, Unchanged

DESCRIPTION = """Turns uploaded networks into engines on the device they will run on, proves them against their
source, and serves them warm. Errors are RFC 9457 problems with `code`, `detail` and `hint`."""


def create_app(services: Services) -> FastAPI:
    """The application over connected services. Its lifespan closes the warm engines, not the services."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.changes.close()
        app.state.watch.close()
        await services.inference.close()

    app = FastAPI(title="jetforge", version=__version__, description=DESCRIPTION, lifespan=lifespan)
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
    app.add_middleware(Unchanged, tags=app.state.tags)  # innermost: whoever may not ask is not told this either
    # Added last, so outermost: what other layers answer is counted as well.
    app.add_middleware(Observed, counts=app.state.requests, is_logged=services.settings.log_requests)
    problems.install(app)
    for part in (jobs, models, calibrations, engines, infer, device, metrics, status, feed, v2):
        app.include_router(part.router)
    return app
