"""Stored calibration sets: zips of samples like those seen in use."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from app.api import openapi
from app.api.responses import json_response, paged, tagged_by_content
from app.api.schemas import CalibrationSchema
from app.api.services import Wired
from app.api.uploads import Filename, received_file

router = APIRouter(tags=["calibrations"])


class CalibrationPage(BaseModel):
    calibrations: list[CalibrationSchema]
    next: str | None  # `after` of the next page; null on the last


@router.post("/calibrations", status_code=201, response_model=CalibrationSchema, openapi_extra=openapi.CALIBRATION_BODY)
async def upload_calibration(request: Request, wired: Wired, filename: Filename = "") -> Response:
    """Store a zip of samples: a multipart part `calibration`, or the raw body. The same bytes twice are one."""
    limit_bytes = wired.settings.max_upload_mib << 20
    async with received_file(request, wired.store, "calibration", limit_bytes, filename) as file:
        calibration = await run_in_threadpool(wired.intake.receive_calibration, file.draft, file.name)
    return json_response(
        CalibrationSchema.from_domain(calibration),
        status=201,
        headers={"Location": f"/calibrations/{calibration.digest}"},
    )


@router.get("/calibrations", response_model=CalibrationPage)
def list_calibrations(
    request: Request, wired: Wired, after: str | None = None, limit: Annotated[int, Query(ge=1, le=500)] = 50
) -> Response:
    """Stored sets, newest first."""
    found = wired.catalogue.calibrations(after=after, limit=limit + 1)
    calibrations, following = paged(found, limit, lambda calibration: calibration.digest)
    page = CalibrationPage(calibrations=[CalibrationSchema.from_domain(one) for one in calibrations], next=following)
    return tagged_by_content(request, page)


@router.get("/calibrations/{calibration_id}", response_model=CalibrationSchema)
def get_calibration(request: Request, wired: Wired, calibration_id: str) -> Response:
    """One stored calibration set."""
    return tagged_by_content(request, CalibrationSchema.from_domain(wired.catalogue.calibration(calibration_id)))


@router.delete("/calibrations/{calibration_id}", status_code=204)
def delete_calibration(wired: Wired, calibration_id: str) -> Response:
    """Forget a set that no engine and no waiting job needs. Its bytes go with the next sweep."""
    wired.catalogue.delete_calibration(calibration_id)
    return Response(status_code=204)
