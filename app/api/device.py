"""The device, and whether the service is well."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from app.api.responses import json_response, tagged_by_content
from app.api.services import Wired
from app.device import DeviceReport, device_report

router = APIRouter(tags=["device"])


class HealthSchema(BaseModel):
    status: str  # ok, or what is wrong
    workers: int  # build workers alive
    queued: int  # jobs that wait
    running: int
    is_starting: bool  # engines that are to be warm from the start are still being loaded
    problems: list[str]  # pinned engines that are not loaded, and why


@router.get("/device", response_model=DeviceReport)
def get_device(request: Request, wired: Wired) -> Response:
    """What this device is, which backends it has, and what is missing with the way to get it."""
    return tagged_by_content(request, asdict(device_report(wired.settings.root)))


@router.get("/healthz")
async def get_health() -> Response:
    """200 as long as the server answers at all."""
    return json_response({"status": "ok"})


@router.get("/readyz", response_model=HealthSchema)
def get_readiness(wired: Wired) -> Response:
    """200 when requests can be served; `status` says when nobody is there to build."""
    counts = {state.value: count for state, count in wired.queue.counts().items()}
    workers = wired.workers_alive()
    body = HealthSchema(
        status="ok" if workers else "no build worker is alive; start one with: jetforge work",
        workers=workers,
        queued=counts.get("queued", 0),
        running=counts.get("running", 0),
        is_starting=wired.warmer.is_starting,
        problems=wired.warmer.problems,
    )
    return json_response(body)
