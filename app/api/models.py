"""Stored networks."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from app.api import openapi
from app.api.responses import json_response, tagged_by_content
from app.api.schemas import ModelSchema
from app.api.services import Wired
from app.api.uploads import received_file

router = APIRouter(tags=["models"])


class ModelPage(BaseModel):
    models: list[ModelSchema]
    next: str | None  # `after` of the next page; null on the last


@router.post("/models", status_code=201, response_model=ModelSchema, openapi_extra=openapi.MODEL_BODY)
async def upload_model(request: Request, wired: Wired) -> Response:
    """Store a network: a multipart part `model`, or the raw body. The same bytes twice are one model."""
    async with received_file(request, wired.store, "model", wired.settings.max_upload_mib << 20) as file:
        model = await run_in_threadpool(wired.intake.receive_model, file.draft, file.name)
    return json_response(ModelSchema.from_domain(model), status=201, headers={"Location": f"/models/{model.digest}"})


@router.get("/models", response_model=ModelPage)
def list_models(
    request: Request, wired: Wired, after: str | None = None, limit: Annotated[int, Query(ge=1, le=500)] = 50
) -> Response:
    """Stored networks, newest first."""
    models = wired.catalogue.models(after=after, limit=limit + 1)
    page = ModelPage(
        models=[ModelSchema.from_domain(model) for model in models[:limit]],
        next=models[limit - 1].digest if len(models) > limit else None,
    )
    return tagged_by_content(request, page)


@router.get("/models/{model_id}", response_model=ModelSchema)
def get_model(request: Request, wired: Wired, model_id: str) -> Response:
    """One stored network."""
    return tagged_by_content(request, ModelSchema.from_domain(wired.catalogue.model(model_id)))


@router.delete("/models/{model_id}", status_code=204)
def delete_model(wired: Wired, model_id: str) -> Response:
    """Forget a network that no engine and no waiting job needs. Its bytes go with the next sweep."""
    wired.catalogue.delete_model(model_id)
    return Response(status_code=204)
