"""The audit log, for the owner."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from app.api.responses import json_response
from app.api.services import Wired

router = APIRouter(tags=["access"])


class AuditEntry(BaseModel):
    at: str
    who: str  # the key's name, or anonymous
    key: str | None  # the key's id
    address: str
    method: str
    path: str
    status: int
    made: str | None  # what the answer's Location named


class AuditPage(BaseModel):
    entries: list[AuditEntry]


@router.get("/audit", response_model=AuditPage)
def get_audit(wired: Wired, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Response:
    """Who changed what, newest first: uploads, builds, cancellations, loads, deletions, and refusals of these."""
    return json_response({"entries": wired.audit.latest(limit)})
