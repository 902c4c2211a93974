"""Headers that tell browsers to trust nothing but the service's own files."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

# On every answer, whoever makes it: the server adds them (uvicorn's `headers`).
ALWAYS = [
    ("X-Content-Type-Options", "nosniff"),  # JSON that holds <script> stays JSON
    ("Referrer-Policy", "no-referrer"),
]
PAGES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self';"
    " connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# FastAPI's pages of the API load their scripts from afar and start them inline; they show the document, nothing else.
API_PAGES = (
    "default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; worker-src blob:;"
    " style-src 'unsafe-inline' https://cdn.jsdelivr.net https://fonts.googleapis.com; font-src https://fonts.gstatic.com;"
    " img-src 'self' data: https://fastapi.tiangolo.com https://cdn.redoc.ly; connect-src 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
_API_PAGES_AT = ("/docs", "/redoc", "/docs/oauth2-redirect")


def with_page_headers(send: Send, path: str) -> Send:
    """Add what an HTML page needs, if the answer is one."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if headers.get("content-type", "").startswith("text/html"):
                headers.setdefault("Content-Security-Policy", API_PAGES if path in _API_PAGES_AT else PAGES)
                headers.setdefault("X-Frame-Options", "DENY")
        await send(message)

    return sending
