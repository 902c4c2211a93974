"""Unchanged: answers a poll whose tag is still the right one, before anything else is done for it."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.observed import ROUTE
from app.api.services import Services
from app.api.status import StatusDocument
from app.storage.watch import RevisionWatch

QUERIES_MAX = 1000  # remembered; more are forgotten all at once


class Tags:
    """The tags of what dashboards poll: `/status` and `/jobs`. Used on the event loop only."""

    def __init__(self, wired: Services, watch: RevisionWatch, status: StatusDocument) -> None:
        self._wired = wired
        self._watch = watch
        self._status = status
        self._queries: set[bytes] = set()

    def answered(self, query: bytes) -> None:
        """`GET /jobs` was answered well for this query; only for such a one can nothing have changed."""
        if len(self._queries) >= QUERIES_MAX:
            self._queries.clear()
        self._queries.add(query)

    def known(self, path: str, query: bytes) -> str | None:
        """The tag of what is polled, if it is known without a look at anything."""
        if path == "/status":
            return self._status.known_tag()
        if query not in self._queries:
            return None
        revision = self._watch.known()
        return None if revision is None else jobs_tag(revision)


def jobs_tag(revision: int) -> str:
    return f'"r{revision}"'


class Unchanged:
    """Plain ASGI. What is not certain goes on to the route, which looks again."""

    def __init__(self, app: ASGIApp, tags: Tags) -> None:
        self._app = app
        self._tags = tags

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] in ("/status", "/jobs"):
            sent = next((value for name, value in scope["headers"] if name == b"if-none-match"), None)
            if sent is not None:
                tag = self._tags.known(scope["path"], scope["query_string"])
                if tag is not None and sent == tag.encode():
                    scope[ROUTE] = scope["path"]
                    headers = [(b"etag", sent), (b"cache-control", b"no-cache")]
                    await send({"type": "http.response.start", "status": 304, "headers": headers})
                    await send({"type": "http.response.body"})
                    return
        await self._app(scope, receive, send)
