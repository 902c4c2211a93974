"""The web application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from app import __version__, room
from app.api import calibrations, device, engine_uploads, engines, infer, jobs, models, previews, problems, upkeep, v2
from app.api.events import Changes
from app.api.services import Services
from app.api.shortcut import Shortcut

DESCRIPTION = """Turns uploaded networks into engines on the device they will run on, proves them against their
source, and serves them warm. Errors are RFC 9457 problems with `code`, `detail` and `hint`."""

# FastAPI's own would look for a provider at each request; older versions ignore it.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}


def create_app(services: Services) -> FastAPI:
    """The application over connected services. Its lifespan closes the warm engines, not the services."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        keeping_up = asyncio.create_task(upkeep.keep_up(services))
        async with room.listening(services.settings.room_socket, services.inference.free_up):
            yield
        keeping_up.cancel()
        app.state.changes.close()
        await services.inference.close()

    app = FastAPI(
        title="jetforge", version=__version__, description=DESCRIPTION, lifespan=lifespan, telemetry=NO_TELEMETRY
    )
    app.state.services = services
    app.state.changes = Changes(services.queue.revision)
    problems.install(app)
    app.add_middleware(Shortcut)  # added first, so innermost: the others see what it answers
    for part in (jobs, models, calibrations, previews, engines, engine_uploads, infer, device, upkeep, v2):
        app.include_router(part.router)
    return app
