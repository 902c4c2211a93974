"""docs/errors.md as a page: where the `type` of every problem points."""

from __future__ import annotations

import html
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from app.domain.errors import RouteNotFound

SOURCE = Path(__file__).parents[2] / "docs" / "errors.md"

router = APIRouter()

_HEADING = re.compile(r"(#{1,3}) (.+)")
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")  # to other pages, which are not served
_FENCE = "```"
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>jetforge: errors</title><link rel="stylesheet" href="/static/style.css"></head>
<body><main>
{}
</main></body></html>
"""


@router.get("/docs/errors", include_in_schema=False)
def get_errors() -> HTMLResponse:
    """What each code means and what to do, with an anchor for each."""
    return HTMLResponse(_page())


@cache
def _page() -> str:
    try:
        text = SOURCE.read_text()
    except OSError as error:
        raise RouteNotFound(
            "The page of errors was not installed with the program.", hint="It is docs/errors.md of its source."
        ) from error
    return page_of(text)


def page_of(text: str) -> str:
    """HTML of as much Markdown as docs/errors.md has: headings, paragraphs, fences, `code` and links."""
    return _PAGE.format("\n".join(_block(block) for block in re.split(r"\n{2,}", text.strip())))


def _block(block: str) -> str:
    if block.startswith(_FENCE):
        inner = block.strip("`").partition("\n")[2]  # after the name of the language
        return f"<pre><code>{html.escape(inner)}</code></pre>"
    heading = _HEADING.fullmatch(block)
    if heading is None:
        return f"<p>{_inline(block)}</p>"
    level, title = len(heading[1]), heading[2]
    anchor = re.sub(r"\W+", "-", title.lower()).strip("-")
    return f'<h{level} id="{anchor}">{_inline(title)}</h{level}>'


def _inline(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", _LINK.sub(r"\1", html.escape(text, quote=False)))
