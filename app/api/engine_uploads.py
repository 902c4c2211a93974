"""Engines that were built elsewhere come in here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.api import openapi
from app.api.multipart import media_type
from app.api.options import build_options
from app.api.responses import json_response
from app.api.schemas import EngineSchema
from app.api.services import Wired
from app.api.uploads import received_file, received_form
from app.domain.errors import InvalidRequest
from app.storage.artefacts import ArtefactStore, Draft

router = APIRouter(tags=["engines"])

_FILE = "file"
_FIELDS = ("backend", "preprocess", "labels")


@router.post("/engines", status_code=201, response_model=EngineSchema, openapi_extra=openapi.ENGINE_FORM)
async def upload_engine(request: Request, wired: Wired) -> Response:
    """Publish an engine that was built elsewhere: a TensorRT plan, also with Ultralytics' metadata before it, or an
    .onnx or .ort file that ONNX Runtime loads.

    It is loaded and run once in a process of its own, and refused if that fails. Its answers are not compared with
    anything: there is no model. Multipart fields: `file`, `name`, optionally `labels`, `preprocess`, `backend`; or the
    raw bytes as the body and the rest as query parameters.
    """
    prebuilt = wired.prebuilt
    async with _received(request, wired.store, wired.settings.max_upload_mib << 20) as (draft, fields):
        unknown = sorted(set(fields) - {"name", *_FIELDS})
        if unknown:
            raise InvalidRequest(
                f"Unknown fields: {', '.join(unknown)[:200]}.",
                hint=f"An engine comes with {_FILE}, name, {', '.join(_FIELDS)}: the rest was decided by its build.",
            )
        name = fields.pop("name", "")
        if not name:
            raise InvalidRequest("The field name is missing: what shall it be called?", hint="-F name=yolo")
        options = build_options(fields)
        async with prebuilt.turn:
            engine = await run_in_threadpool(prebuilt.receive, draft, name, options)
    wired.inference.forget(engine.ref)
    return json_response(
        EngineSchema.from_domain(engine, None), status=201, headers={"Location": f"/engines/{engine.ref}"}
    )


@asynccontextmanager
async def _received(
    request: Request, store: ArtefactStore, limit_bytes: int
) -> AsyncIterator[tuple[Draft, dict[str, str]]]:
    """The engine's bytes and the fields beside them."""
    if media_type(request) != "multipart/form-data":
        fields = _without(request.query_params, "filename")
        async with received_file(request, store, _FILE, limit_bytes) as raw:
            yield raw.draft, fields
        return
    async with received_form(request, store, {_FILE}, limit_bytes) as form:
        if _FILE not in form.files:
            raise InvalidRequest(f"The part {_FILE!r} is missing.", hint="With curl: -F file=@yolo.engine")
        yield form.files[_FILE].draft, form.fields


def _without(fields: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in fields.items() if key != name}
