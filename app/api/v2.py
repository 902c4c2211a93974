"""Open Inference Protocol v2 over REST, as Triton's clients speak it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from app import __version__
from app.api import v2_body, v2_describe, v2_infer
from app.api.multipart import read_body
from app.api.responses import json_response
from app.api.services import Services, services
from app.domain.builds import NAME, EngineRecord
from app.domain.errors import EngineNotFound, FeatureUnsupported, InvalidRequest, ServiceError

Endpoint = Callable[[Request], Awaitable[Response]]

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
VERSION_MAX = 999_999_999
ENGINES_MAX = 10_000  # in one list
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
            extra = {"parameters": parameters}
            router.add_api_route(path + tail, endpoint, methods=[method], response_model=None, openapi_extra=extra)
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
    return _statistics(services(request), await _published(services(request)))


@_for_model("GET", "")
async def model_metadata(request: Request) -> Response:
    """Versions, inputs and outputs. The inputs are the native ones; images can be sent as BYTES instead."""
    record = await _record(request)
    versions = await _published(services(request), record.name)
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
    return _statistics(services(request), [record] if is_one else await _published(services(request), record.name))


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
    wired = services(request)
    entries = [_index_entry(record, wired.inference.is_withdrawn(record)) for record in await _published(wired)]
    return json_response([entry for entry in entries if not order.get("ready") or entry["state"] == "READY"])


@router.post("/repository/models/{model}/load")
async def load_model(request: Request, model: str) -> Response:
    """Make the newest version warm now."""
    parameters = (await _order(request)).get("parameters") or {}
    if not isinstance(parameters, dict) or any(name == "config" or name.startswith("file:") for name in parameters):
        raise FeatureUnsupported(
            "The request brings a model configuration or files.", hint="Build engines with POST /jobs, then load them."
        )
    await services(request).inference.load(_ref(request))
    return json_response({})


@router.post("/repository/models/{model}/unload")
async def unload_model(request: Request, model: str) -> Response:
    """Give the memory of all versions back; requests that run are finished first."""
    record = await _record(request)
    for version in await _published(services(request), record.name):
        await services(request).inference.unload(version.ref)
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
    return ref_of(request.path_params["model"], request.path_params.get("version", "-1"))


def ref_of(name: str, version: str) -> str:
    """The engine that an address names: `name` for the newest version (-1), else `name:version`.

    Raises:
        InvalidRequest, EngineNotFound: no engine can have such a version, or such a name.
    """
    if not re.fullmatch(r"-1|[0-9]{1,18}", version):
        raise InvalidRequest(f"{version[:80]!r} is not a version.", hint="Versions are 1, 2, …; -1 is the newest.")
    ref = str(name) if version == "-1" else f"{name}:{int(version)}"
    if not NAME.fullmatch(name) or (version != "-1" and not 1 <= int(version) <= VERSION_MAX):
        raise EngineNotFound(f"There is no engine {ref[:80]!r}.", hint="POST /v2/repository/index lists the engines.")
    return ref


async def _record(request: Request) -> EngineRecord:
    return await services(request).inference.find(_ref(request))


async def _published(wired: Services, name: str | None = None) -> list[EngineRecord]:
    return await run_in_threadpool(wired.catalogue.engines, name=name, limit=ENGINES_MAX)


def _statistics(wired: Services, records: list[EngineRecord]) -> Response:
    totals = wired.inference.statistics
    stats = [v2_describe.statistics(record, totals.of(record.ref)) for record in records]
    return json_response({"model_stats": stats})


def _index_entry(record: EngineRecord, is_withdrawn: bool) -> dict[str, str]:
    state, reason = ("UNAVAILABLE", "unloaded") if is_withdrawn else ("READY", "")
    return {"name": record.name, "version": str(record.version), "state": state, "reason": reason}


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
