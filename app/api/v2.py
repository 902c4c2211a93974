"""Open Inference Protocol v2 over REST, as Triton's clients speak it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from app import __version__
from app.api import openapi, v2_body, v2_describe, v2_infer, v2_repository
from app.api.multipart import read_body
from app.api.responses import json_response
from app.api.services import Services, services
from app.api.v2_repository import EXTENSIONS, published
from app.domain.builds import EngineRecord
from app.domain.errors import FeatureUnsupported, InvalidRequest, ServiceError

Endpoint = Callable[[Request], Awaitable[Response]]

ORDER_BYTES_MAX = 1 << 20  # body of a repository request


class _Route(APIRoute):
    """Answers errors with the protocol's statuses."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except ServiceError as error:
                response = v2_infer.refusal(error)
                if response is None:
                    raise  # answered, and written to the log, with all others
                return response

        return guarded


router = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=_Route)


def _for_model(method: str, tail: str) -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint for a model's newest version and for a version by number."""

    def registered(endpoint: Endpoint) -> Endpoint:
        for path, names in (
            ("/models/{model}", ["model"]),
            ("/models/{model}/versions/{version}", ["model", "version"]),
        ):
            parameters = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
            extra: dict[str, Any] = {"parameters": parameters}
            answers = None
            if tail == "/infer":
                extra, answers = {**extra, **openapi.V2_INFER_BODY}, openapi.V2_INFER_ANSWER
            router.add_api_route(
                path + tail, endpoint, methods=[method], response_model=None, openapi_extra=extra, responses=answers
            )
        return endpoint

    return registered


@router.get("")
async def server_metadata() -> Response:
    """Name, version and extensions of this server."""
    return json_response({"name": "jetforge", "version": __version__, "extensions": EXTENSIONS})


@router.get("/health/live")
async def server_live() -> Response:
    """200 as long as the server answers at all."""
    return json_response({"live": True})


@router.get("/health/ready")
async def server_ready() -> Response:
    """200 when inference requests are answered; engines are loaded by their first one."""
    return json_response({"ready": True})


@router.get("/models/stats")
async def all_statistics(request: Request) -> Response:
    """Statistics of every published engine, all versions."""
    return _statistics(services(request), await published(services(request)))


@_for_model("GET", "")
async def model_metadata(request: Request) -> Response:
    """Versions, inputs and outputs. The inputs are the native ones; images can be sent as BYTES instead."""
    record = await _record(request)
    versions = await published(services(request), record.name)
    return json_response(v2_describe.metadata(record, sorted(known.version for known in versions)))


@_for_model("GET", "/ready")
async def model_ready(request: Request) -> Response:
    """200 unless the engine was unloaded by name and neither used nor loaded since."""
    record = await _record(request)
    if not services(request).inference.is_withdrawn(record):
        return json_response({"name": record.name, "ready": True})
    error = f"{record.ref} was unloaded; load it, or send a request."
    return json_response({"name": record.name, "ready": False, "error": error}, status=400)


@_for_model("GET", "/config")
async def model_configuration(request: Request) -> Response:
    """Triton's model configuration, as far as it applies."""
    return json_response(v2_describe.configuration(await _record(request)))


@_for_model("GET", "/stats")
async def model_statistics(request: Request) -> Response:
    """Statistics of one version, or of all versions when none is named."""
    record = await _record(request)
    is_one = "version" in request.path_params
    return _statistics(services(request), [record] if is_one else await published(services(request), record.name))


@_for_model("POST", "/infer")
async def infer(request: Request) -> Response:
    """Run an engine, loading it first when it is cold. JSON, or a JSON header followed by binary tensors.

    Encoded images as a BYTES tensor of shape [n] or [n, 1] go through the engine's own recipe.
    """
    wired = services(request)
    head = v2_infer.asked(_ref(request), request.headers)
    await wired.inference.find(head.ref)  # before the body is read: it may be large, and the name wrong
    body = await v2_body.read_aligned(request, wired.settings.max_body_mib << 20, head.header_bytes or 0)
    return await v2_infer.answered(wired, head, body)


@router.post("/repository/index")
async def repository_index(request: Request) -> Response:
    """Every published engine, all versions; with {"ready": true} only those that are ready."""
    order = await _order(request)
    return json_response(await v2_repository.index(services(request), only_ready=bool(order.get("ready"))))


@router.post("/repository/models/{model}/load")
async def load_model(request: Request, model: str) -> Response:
    """Make the newest version warm now."""
    parameters = (await _order(request)).get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest("The parameters are not a JSON object.", hint="Send {} or nothing.")
    await v2_repository.load(services(request), model, parameters)
    return json_response({})


@router.post("/repository/models/{model}/unload")
async def unload_model(request: Request, model: str) -> Response:
    """Give the memory of all versions back; requests that run are finished first."""
    await v2_repository.unload(services(request), model)
    return json_response({})


@router.api_route("/systemsharedmemory/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/cudasharedmemory/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/models/{model}/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/trace/setting", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/logging", methods=["GET", "POST"], include_in_schema=False)
async def unsupported(request: Request) -> Response:
    """What Triton's clients can ask for and this server does not have."""
    raise FeatureUnsupported(
        f"{request.url.path[:200]} belongs to an extension that this server does not have.",
        hint=f"Its extensions are: {', '.join(EXTENSIONS)}.",
    )


def _ref(request: Request) -> str:
    """The engine that the address names."""
    return v2_repository.engine_ref(request.path_params["model"], request.path_params.get("version", "-1"))


async def _record(request: Request) -> EngineRecord:
    return await services(request).inference.find(_ref(request))


def _statistics(wired: Services, records: list[EngineRecord]) -> Response:
    totals = wired.inference.statistics
    stats = [v2_describe.statistics(record, totals.of(record.ref)) for record in records]
    return json_response({"model_stats": stats})


async def _order(request: Request) -> dict[str, Any]:
    """The JSON object of a repository request; an empty body is an empty one."""
    body = await read_body(request, ORDER_BYTES_MAX)
    try:
        order = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.", hint="Send {} or nothing.") from error
    if not isinstance(order, dict):
        raise InvalidRequest("The body is not a JSON object.", hint="Send {} or nothing.")
    return order
