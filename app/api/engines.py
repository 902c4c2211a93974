"""Engines: what is published, what is warm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from app.api import openapi
from app.api.ranges import RangedFile
from app.api.responses import json_response, paged, tagged_by_content
from app.api.schemas import EngineSchema
from app.api.services import Services, Wired
from app.domain.builds import EngineRecord, parsed_ref
from app.domain.errors import EngineDamaged

router = APIRouter(tags=["engines"])

KEEP_ALIVE_S_MAX = 1e9


class MemorySchema(BaseModel):
    """The pool of warm engines."""

    used_bytes: int
    budget_bytes: int


class LoadSchema(BaseModel):
    """How an engine is kept; the same names can be sent as query parameters, which win."""

    model_config = ConfigDict(extra="forbid")

    pin: bool | None = Field(None, description="whether it stays until it is unloaded by name; null: as it was")
    keep_alive_s: float | None = Field(
        None,
        ge=0,
        le=KEEP_ALIVE_S_MAX,
        allow_inf_nan=False,
        description="unused for so long, it leaves; 0: when its room is needed; null: as it was",
    )


class EnginePage(BaseModel):
    engines: list[EngineSchema]
    next: str | None  # `after` of the next page; null on the last
    memory: MemorySchema


@router.get("/engines", response_model=EnginePage)
async def list_engines(
    request: Request,
    wired: Wired,
    name: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Response:
    """Published engines, newest first, and which of them are warm."""
    found = await run_in_threadpool(wired.catalogue.engines, name=name, after=after, limit=limit + 1)
    engines, following = paged(found, limit, lambda engine: engine.ref)
    page = EnginePage(
        engines=_schemas(wired, engines),
        next=following,
        memory=MemorySchema(
            used_bytes=wired.inference.used_bytes,
            budget_bytes=wired.inference.budget_bytes,
        ),
    )
    return tagged_by_content(request, page)


def _schemas(wired: Services, engines: Sequence[EngineRecord]) -> list[EngineSchema]:
    warm = {ref: state for state in wired.inference.states() for ref in state.refs}
    return [EngineSchema.from_domain(engine, warm.get(engine.ref)) for engine in engines]


@router.get("/engines/{ref}", response_model=EngineSchema)
async def get_engine(request: Request, wired: Wired, ref: str) -> Response:
    """One engine: `name` (newest version) or `name:version`."""
    return tagged_by_content(request, await _described(wired, ref))


async def _described(wired: Services, ref: str) -> EngineSchema:
    engine = await run_in_threadpool(_found, wired, ref)
    return _schemas(wired, [engine])[0]


def _found(wired: Services, ref: str) -> EngineRecord:
    return wired.catalogue.engine(*parsed_ref(ref))


@router.get("/engines/{ref}/file", response_class=FileResponse, responses=openapi.FILE_ANSWER)
def download_engine(wired: Wired, ref: str) -> Response:
    """The engine file itself. It runs only under the facts that the engine's description states."""
    engine = _found(wired, ref)
    if not wired.store.has(engine.blob):
        raise EngineDamaged(
            f"The file of engine {engine.ref} is not there.", hint=f"Load the engine: POST /engines/{engine.ref}/load."
        )
    suffix = "trt" if engine.built.facts.backend == "tensorrt" else "onnx"
    path = wired.store.path(engine.blob)
    return RangedFile(
        path,
        stat_result=path.stat(),
        media_type="application/octet-stream",
        filename=f"{engine.name}-{engine.version}.{suffix}",
        headers={"ETag": f'"{engine.blob}"'},
    )


@router.post("/engines/{ref}/load", response_model=EngineSchema)
async def load_engine(
    wired: Wired,
    ref: str,
    body: LoadSchema | None = None,
    pin: bool | None = None,
    keep_alive_s: Annotated[float | None, Query(ge=0, le=KEEP_ALIVE_S_MAX, allow_inf_nan=False)] = None,
) -> Response:
    """Make an engine warm now: loaded, run once, ready. How it is kept can be sent as JSON or in the query."""
    asked = body or LoadSchema()
    await wired.inference.load(
        ref,
        pin=asked.pin if pin is None else pin,
        keep_alive_s=asked.keep_alive_s if keep_alive_s is None else keep_alive_s,
    )
    return json_response(await _described(wired, ref))


@router.post("/engines/{ref}/unload", response_model=EngineSchema)
async def unload_engine(wired: Wired, ref: str) -> Response:
    """Give an engine's memory back; requests that run are finished first."""
    await wired.inference.unload(ref)
    return json_response(await _described(wired, ref))


@router.delete("/engines/{ref}", status_code=204)
async def delete_engine(wired: Wired, ref: str) -> Response:
    """Delete one version (`name:version`), or the newest when only the name is given. Its number is not used again."""
    engine = await run_in_threadpool(_found, wired, ref)
    await run_in_threadpool(wired.catalogue.delete_engine, engine.name, engine.version)
    wired.inference.forget(engine.ref)
    wired.inference.unpin(engine.ref)
    if not await run_in_threadpool(wired.catalogue.blob_in_use, engine.blob):
        await wired.inference.drop(engine)
    return Response(status_code=204)
