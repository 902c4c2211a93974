"""The web application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import __version__
from app.api import calibrations, device, engines, infer, jobs, models, problems, v2
from app.api.events import Changes
from app.api.services import Services

DESCRIPTION = """Turns uploaded networks into engines on the device they will run on, proves them against their
source, and serves them warm. Errors are RFC 9457 problems with `code`, `detail` and `hint`."""


def create_app(services: Services) -> FastAPI:
    """The application over connected services. Its lifespan loads and closes the warm engines, not the services."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services.warmer.start()
        yield
        app.state.changes.close()
        await services.warmer.close()
        await services.inference.close()

    app = FastAPI(title="jetforge", version=__version__, description=DESCRIPTION, lifespan=lifespan)
    app.state.services = services
    app.state.changes = Changes(services.queue.revision)
    problems.install(app)
    for part in (jobs, models, calibrations, engines, infer, device, v2):
        app.include_router(part.router)
    return app
