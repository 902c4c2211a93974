"""The dashboard: static files that talk to the API as any client does. They hold no data, so they need no key."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "static"

# Nothing from elsewhere, nothing inline: a name that slips into the page as markup still runs nothing. blob: is for
# images that the page itself made, of a dropped file or of a preview.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",  # the browser asks each time, and mostly gets 304
}


def install(app: FastAPI) -> None:
    """Serve the dashboard at `/` and its files under `/static`."""
    files = _Files(directory=FOLDER)
    app.mount("/static", files, name="static")

    @app.get("/", include_in_schema=False)
    async def dashboard(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)


class _Files(StaticFiles):
    """Static files with the dashboard's headers; their ETag follows from time and size."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        return response
