"""Stored networks."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from app.api import openapi
from app.api.responses import json_response, paged, tagged_by_content
from app.api.schemas import InspectedModelSchema, ModelSchema
from app.api.services import Services, Wired
from app.api.uploads import Filename, received_file
from app.domain.builds import SourceModel

router = APIRouter(tags=["models"])

Wait = Annotated[float, Query(ge=0, le=300, description="seconds to wait until the network was looked into")]
_WAIT_S = 30.0


class ModelPage(BaseModel):
    models: list[ModelSchema]
    next: str | None  # `after` of the next page; null on the last


@router.post("/models", status_code=201, response_model=InspectedModelSchema, openapi_extra=openapi.MODEL_BODY)
async def upload_model(request: Request, wired: Wired, wait: Wait = _WAIT_S, filename: Filename = "") -> Response:
    """Store a network: a multipart part `model`, or the raw body. The same bytes twice are one model.

    It is looked into at once, in a process of its own: the answer tells inputs, outputs, operators and what a backend
    lacks of it, or the failure that a build would meet. A network that fails is stored all the same.
    """
    async with received_file(request, wired.store, "model", wired.settings.max_upload_mib << 20, filename) as file:
        model = await run_in_threadpool(wired.intake.receive_model, file.draft, file.name)
    body = await _inspected(wired, model, wait)
    return json_response(body, status=201, headers={"Location": f"/models/{model.digest}"})


@router.get("/models", response_model=ModelPage)
def list_models(
    request: Request, wired: Wired, after: str | None = None, limit: Annotated[int, Query(ge=1, le=500)] = 50
) -> Response:
    """Stored networks, newest first."""
    found = wired.catalogue.models(after=after, limit=limit + 1)
    models, following = paged(found, limit, lambda model: model.digest)
    page = ModelPage(models=[ModelSchema.from_domain(model) for model in models], next=following)
    return tagged_by_content(request, page)


@router.get("/models/{model_id}", response_model=InspectedModelSchema)
async def get_model(request: Request, wired: Wired, model_id: str, wait: Wait = _WAIT_S) -> Response:
    """One stored network, and what is in it; `inspection` is `pending` when that is not known after `wait` seconds."""
    model = await run_in_threadpool(wired.catalogue.model, model_id)
    return tagged_by_content(request, await _inspected(wired, model, wait))


@router.delete("/models/{model_id}", status_code=204)
async def delete_model(wired: Wired, model_id: str) -> Response:
    """Forget a network that no engine and no waiting job needs. Its bytes go with the next sweep."""
    await run_in_threadpool(wired.catalogue.delete_model, model_id)
    wired.inspections.forget(model_id)
    return Response(status_code=204)


async def _inspected(wired: Services, model: SourceModel, wait_s: float) -> InspectedModelSchema:
    return InspectedModelSchema.of(model, await wired.inspections.of(model, wait_s))
