"""Removing what has served its time: by itself once an hour, and when asked."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from app.api.responses import json_response
from app.api.services import Services, Wired
from app.domain.errors import ServiceError
from app.retention import Removal, RemovalKind

log = logging.getLogger(__name__)

router = APIRouter(tags=["upkeep"])

FIRST_S = 120.0  # after the start: whoever starts the service may want to change its settings first
EVERY_S = 3600.0


class RemovalSchema(BaseModel):
    kind: RemovalKind
    id: str
    why: str
    size_bytes: int


class UpkeepSchema(BaseModel):
    """What went, or would go."""

    dry_run: bool
    removals: list[RemovalSchema]
    freed_bytes: int


@router.post("/gc", response_model=UpkeepSchema)
async def collect_garbage(
    wired: Wired, dry_run: Annotated[bool, Query(description="only tell what would go")] = False
) -> Response:
    """Remove what the settings `keep_…` no longer keep, and bytes that nothing refers to. Nothing in use goes."""
    act = wired.retention.planned if dry_run else wired.retention.apply
    removals = await run_in_threadpool(act, in_use(wired))
    body = UpkeepSchema(
        dry_run=dry_run,
        removals=[RemovalSchema.model_validate(removal, from_attributes=True) for removal in removals],
        freed_bytes=sum(removal.size_bytes for removal in removals),
    )
    return json_response(body)


def in_use(wired: Services) -> set[str]:
    """Every engine that is warm, loading or draining, as name:version."""
    return {ref for state in wired.inference.states() for ref in state.refs}


async def keep_up(wired: Services) -> None:
    """Collect garbage once an hour, until cancelled."""
    await asyncio.sleep(FIRST_S)
    while True:
        try:
            _tell(await run_in_threadpool(wired.retention.apply, in_use(wired)))
        except ServiceError as error:  # a database that is busy: the next hour is soon enough
            log.warning("upkeep was put off", extra={"code": error.code, "detail": error.detail})
        except Exception:
            log.exception("upkeep failed")
        await asyncio.sleep(EVERY_S)


def _tell(removals: list[Removal]) -> None:
    if removals:
        log.info("upkeep", extra={"removed": len(removals), "bytes": sum(r.size_bytes for r in removals)})
