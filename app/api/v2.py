"""Open Inference Protocol v2 over REST, as Triton's clients speak it."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from app import __version__
from app.api import openapi, v2_body, v2_codec, v2_describe
from app.api.multipart import read_body
from app.api.problems import problem, status_of
from app.api.responses import json_response
from app.api.services import Services, services
from app.domain.builds import NAME, EngineRecord
from app.domain.errors import EngineNotFound, FeatureUnsupported, InvalidRequest, ServiceError, Unavailable
from app.domain.tensors import Signature
from app.serving.service import Answer

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
VERSION_MAX = 999_999_999
ENGINES_MAX = 10_000  # in one list
ORDER_BYTES_MAX = 1 << 20  # body of a repository request
OFF_LOOP_BYTES = 1 << 16  # JSON, and anything compressed, of more bytes than this is handled on a thread
STATUSES = {404: 404, 415: 501, 500: 500, 503: 503}  # the service's to the protocol's; all others are 400
HEADER_LENGTH = "Inference-Header-Content-Length"


class _Route(APIRoute):
    """Answers errors with the protocol's statuses."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except ServiceError as error:
                status = STATUSES.get(status_of(error), 400)
                if status == 500:
                    raise  # answered, and written to the log, with all others
                headers = {}
                if isinstance(error, FeatureUnsupported):
                    headers["Accept-Encoding"] = v2_body.CODINGS
                if isinstance(error, Unavailable):
                    headers["Retry-After"] = str(error.retry_after_s)
                return problem(status, error.code, error.title, error.detail, error.hint, headers)

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
    record = await wired.inference.find(_ref(request))
    limit_bytes = wired.settings.max_body_mib << 20
    header_bytes = v2_codec.header_length(request.headers.get(HEADER_LENGTH))
    body = await v2_body.read_aligned(request, limit_bytes, header_bytes or 0)
    arrived_ns = time.perf_counter_ns()
    asked = await _decoded(request, body, header_bytes, record.built.signature, limit_bytes)
    input_ns = time.perf_counter_ns() - arrived_ns
    # By version: a newer one published in between may have another signature.
    if asked.images:
        answer = await wired.inference.infer_images(record.ref, asked.images)
    else:
        answer = await wired.inference.infer(record.ref, asked.inputs)
    answered_ns = time.perf_counter_ns()
    response = await _encoded(request, asked, answer)
    output_ns = time.perf_counter_ns() - answered_ns
    wired.inference.statistics.add_coding(record.ref, input_ns=input_ns, output_ns=output_ns)
    return response


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
    """The engine that the address names: `name` for the newest version, else `name:version`."""
    name, version = request.path_params["model"], request.path_params.get("version", "-1")
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


async def _decoded(
    request: Request, body: memoryview, header_bytes: int | None, signature: Signature, limit_bytes: int
) -> v2_codec.InferRequest:
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    is_plain = coding in ("identity", "")
    json_bytes = len(body) if header_bytes is None else header_bytes

    def read() -> v2_codec.InferRequest:
        plain = body if is_plain else v2_body.inflated(body, coding, limit_bytes)
        return v2_codec.decoded(plain, header_bytes, signature)

    return await _off_loop_if(not is_plain or json_bytes > OFF_LOOP_BYTES, read)


async def _encoded(request: Request, asked: v2_codec.InferRequest, answer: Answer) -> Response:
    coding = v2_body.wanted_coding(request.headers.get("accept-encoding", ""))
    takes_time = coding is not None or any(wanted.classes or not wanted.is_binary for wanted in asked.outputs)
    is_large = sum(output.nbytes for output in answer.outputs.values()) > OFF_LOOP_BYTES
    return await _off_loop_if(takes_time and is_large, partial(_response, asked, answer, coding))


def _response(asked: v2_codec.InferRequest, answer: Answer, coding: str | None) -> Response:
    body, header_bytes = v2_codec.encoded(asked, answer.engine, answer.outputs)
    headers = {}
    if header_bytes is not None:
        headers[HEADER_LENGTH] = str(header_bytes)
    if coding is not None:
        body = v2_body.deflated(body, coding)
        headers["Content-Encoding"] = coding
    media_type = "application/json" if header_bytes is None else "application/octet-stream"
    return Response(body, media_type=media_type, headers=headers)


async def _off_loop_if(takes_long: bool, work: Callable[[], T]) -> T:
    """Do the work on a thread when it would hold up the event loop for longer than the hop takes."""
    return await run_in_threadpool(work) if takes_long else work()
