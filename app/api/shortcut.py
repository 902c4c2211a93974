"""Shortcut: inference requests go to the same functions as their routes do, without the router in between."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import parse_qsl

from fastapi import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import infer, v2_infer, v2_repository
from app.api.exchange import BODY, PLAN
from app.api.fast_path import FastPath
from app.api.heads import Head, Plan
from app.api.problems import answer_to
from app.api.services import Inferring
from app.domain.errors import ServiceError

log = logging.getLogger(__name__)

ROUTE = "jetforge.route"  # in the scope: the template of the route that this request would have taken
_INFER = re.compile(r"/infer/([^/]+)")
_V2 = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_QUERY = {
    "top": re.compile("[1-9][0-9]{0,2}|1000"),
    "outputs": re.compile("true|false"),
    "shape": re.compile("[0-9x]+"),
}


class Shortcut:
    """Innermost of the middlewares, so that all others see these requests as well.

    FastAPI's router, dependencies and responses take longer than a small engine. A request that is not plain in every
    respect has no plan, and goes on to the router; so the routes say everything that there is to say.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plan: Plan | None = scope.get(PLAN)
        if plan is None:
            await self._app(scope, receive, send)
            return
        response = await plan.answer(scope)
        await response(scope, receive, send)


def planned(wired: Inferring, fast_path: FastPath | None, head: Head) -> Plan | None:
    """How such a request is answered without the router; None: it takes the router's way.

    Args:
        fast_path: None: there is none.
    """
    if head.body_bytes > wired.settings.max_body_mib << 20:
        return None
    if b"origin" in head.headers or b"expect" in head.headers:
        fast_path = None  # there is more to such an answer than is to the others'
    try:
        return _infer_plan(wired, fast_path, head) or _v2_plan(wired, fast_path, head)
    except ServiceError:
        return None  # the route has the same objection, and says so


def _infer_plan(wired: Inferring, fast_path: FastPath | None, head: Head) -> Plan | None:
    matched = _INFER.fullmatch(head.path)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers.items()}
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    query = _plain_query(head.query)
    if matched is None or kind == infer.FORM or query is None:
        return None
    (ref,) = matched.groups()
    outputs = query["outputs"] == "true" if "outputs" in query else None
    asked = infer.asked(ref, kind, headers, int(query.get("top", 5)), outputs, query.get("shape"))

    async def answered(body: memoryview) -> Response:
        return await infer.answered(wired, asked, [body])

    route = "/infer/{ref}"
    answer = partial(_answered, answered, answer_to, route, {"ref": ref})
    begin = (
        fast_path.of(head, route, infer.Steps(asked, wired.inference.prepares_images))
        if fast_path is not None
        else None
    )
    return Plan(head, ref, 0, partial(wired.inference.has_found, ref), answer, begin)


def _v2_plan(wired: Inferring, fast_path: FastPath | None, head: Head) -> Plan | None:
    matched = _V2.fullmatch(head.path)
    if matched is None:
        return None
    model, version = matched.groups()
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers.items()}
    asked = v2_infer.asked(v2_repository.engine_ref(model, version or "-1"), headers)
    names = {"model": model} if version is None else {"model": model, "version": version}
    route = "/v2/models/{model}/infer" if version is None else "/v2/models/{model}/versions/{version}/infer"

    async def answered(body: memoryview) -> Response:
        return await v2_infer.answered(wired, asked, body)

    answer = partial(_answered, answered, v2_infer.answer_to, route, names)
    begin = fast_path.of(head, route, v2_infer.Steps(asked)) if fast_path is not None else None
    return Plan(head, asked.ref, asked.header_bytes or 0, partial(wired.inference.has_found, asked.ref), answer, begin)


def _plain_query(query: bytes) -> dict[str, str] | None:
    """The query, if every part of it is what the route wants; None: the router is to judge it."""
    parts = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    known = dict(parts)
    if len(known) < len(parts) or any(name not in _QUERY or not _QUERY[name].fullmatch(value) for name, value in parts):
        return None
    return known


async def _answered(
    answered: Callable[[memoryview], Awaitable[Response]],
    answer_to: Callable[[Exception, str], Response],
    route: str,
    names: dict[str, str],
    scope: Scope,
) -> Response:
    scope[ROUTE], scope["path_params"] = route, names
    try:
        return await answered(await scope[BODY]())
    except Exception as error:
        return answer_to(error, scope["path"])
