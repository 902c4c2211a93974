"""Queries: a parameter that a route does not have is refused, as an unknown field of a form is."""

from __future__ import annotations

from fastapi import Depends, Request
from fastapi.routing import APIRoute

from app.api.names import no_such
from app.domain.errors import InvalidRequest

CACHE_BUSTER = "_"  # what some programs add so that no cache answers


async def _refuse_unknown(request: Request) -> None:  # a plain function would cost each request a hop to a thread
    if not request.scope["query_string"]:
        return
    route: APIRoute = request.scope["route"]
    known = [parameter.alias for parameter in route.dependant.query_params]
    unknown = next((name for name in request.query_params if name not in (*known, CACHE_BUSTER)), None)
    if unknown is not None:
        raise InvalidRequest(
            no_such("query parameter", unknown, known),
            hint=f"{request.method} {route.path} takes {', '.join(known) or 'none'}; /docs describes them.",
        )


KNOWN_ONLY = Depends(_refuse_unknown)
