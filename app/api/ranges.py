"""Files, and the parts of them that a Range header names."""

from __future__ import annotations

import re

from fastapi import Response
from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from app.api.problems import problem

_PART = re.compile("([0-9]{0,99})-([0-9]{0,99})")


class RangedFile(FileResponse):
    """A file, or the parts that are asked for: starlette's, which refuses what is to be ignored.

    Make it with a `stat_result`.

    Source:
        RFC 9110, 13.1.5, 14.1.2, 14.2 and 15.5.17.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers(scope=scope)
        text, condition = asked.get("range", ""), asked.get("if-range")
        assert self.stat_result is not None
        size_bytes = self.stat_result.st_size
        is_meant = condition in (None, self.headers["etag"], self.headers["last-modified"])
        parts = _satisfiable(text, size_bytes) if is_meant else None
        if parts is not None and not parts:
            await _refusal(text, size_bytes)(scope, receive, send)
            return
        await super().__call__(_with_range(scope, parts), receive, send)


def _satisfiable(text: str, size_bytes: int) -> list[str] | None:
    """Those of the ranges that name bytes of the file; None: the header is of another unit, or invalid, and ignored."""
    unit, _, ranges = text.partition("=")
    found = [_PART.fullmatch(part.strip()) for part in ranges.split(",") if part.strip()]
    if unit.strip().lower() != "bytes" or not found:
        return None
    satisfiable = []
    for part in found:
        if part is None or part[0] == "-" or (all(part.groups()) and int(part[2]) < int(part[1])):
            return None
        if int(part[1]) < size_bytes if part[1] else int(part[2]) and size_bytes:
            satisfiable.append(part[0])
    return satisfiable


def _with_range(scope: Scope, parts: list[str] | None) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
    if parts:
        headers.append((b"range", f"bytes={','.join(parts)}".encode()))
    return {**scope, "headers": headers}


def _refusal(text: str, size_bytes: int) -> Response:
    return problem(
        416,
        "range_not_satisfiable",
        "The file has no such bytes",
        f"The range is {text[:80]!r}; the file has {size_bytes} bytes.",
        "Ask for less, or leave the header Range out.",
        {"Content-Range": f"bytes */{size_bytes}"},
    )
