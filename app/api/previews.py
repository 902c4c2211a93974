"""A look into a calibration set: a few of its images, as an engine's recipe frames them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from pathlib import Path
from typing import Annotated
from zipfile import ZipFile, ZipInfo

import cv2
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from app.api.responses import matches, not_modified, tagged
from app.api.services import Services, Wired
from app.domain.builds import parsed_ref
from app.domain.decode import Image
from app.domain.errors import ArchiveRejected, ImageRejected
from app.domain.preprocess import Preprocess, Resize, framed
from app.storage.archives import IMAGES, opened_archive, read_entry, usable_entries

router = APIRouter(tags=["calibrations"])

SIDE_MAX = 160  # pixels of a thumbnail's longer side
_IMAGE_BYTES_MAX = 16 << 20  # encoded
_PLAIN = Preprocess(input="", width=96, height=96, resize=Resize.LETTERBOX)  # without an engine: the whole image

_one_at_a_time = asyncio.Semaphore(1)  # an image may be 100 megapixels: their memory must not add up


class SampleSchema(BaseModel):
    file: str  # its path in the archive
    png: str | None  # base64; null: the file is not an image that can be decoded


class PreviewSchema(BaseModel):
    samples: list[SampleSchema]
    images: int = Field(description="files that are named like images")
    files: int
    width: int = Field(description="of what the recipe makes, in pixels; thumbnails are at most 160 × 160")
    height: int


@router.get("/calibrations/{calibration_id}/preview", response_model=PreviewSchema)
async def preview_calibration(
    request: Request,
    wired: Wired,
    calibration_id: str,
    n: Annotated[int, Query(ge=1, le=24, description="images, evenly spread over the archive")] = 12,
    engine: Annotated[str | None, Query(description="`name` or `name:version`: through its recipe")] = None,
) -> Response:
    """A few images of a set as PNG, resized, cut and coloured by an engine's recipe, before mean and std."""
    archive, recipe = await run_in_threadpool(_found, wired, calibration_id, engine)
    etag = (
        f'"{hashlib.sha256(f"{archive.name} {recipe} {n}".encode()).hexdigest()[:16]}"'  # all that decides the answer
    )
    if matches(request, etag):
        return not_modified(etag)
    async with _one_at_a_time:
        page = await run_in_threadpool(_preview, archive, recipe, n)
    return tagged(page, etag)


def _found(wired: Services, calibration_id: str, engine: str | None) -> tuple[Path, Preprocess]:
    archive = wired.store.path(wired.catalogue.calibration(calibration_id).digest)
    recipe = wired.catalogue.engine(*parsed_ref(engine)).built.preprocess if engine is not None else None
    return archive, recipe or _PLAIN


def _preview(path: Path, recipe: Preprocess, n: int) -> PreviewSchema:
    with opened_archive(path) as archive:
        entries = usable_entries(archive)
        images = [info for info in entries if Path(info.filename).suffix.lower() in IMAGES]
        count = min(n, len(images))
        chosen = [images[index * len(images) // count] for index in range(count)]
        samples = [SampleSchema(file=info.filename[:200], png=_png(archive, info, recipe)) for info in chosen]
    return PreviewSchema(
        samples=samples, images=len(images), files=len(entries), width=recipe.width, height=recipe.height
    )


def _png(archive: ZipFile, info: ZipInfo, recipe: Preprocess) -> str | None:
    try:
        image = framed(read_entry(archive, info, _IMAGE_BYTES_MAX), recipe)
    except (ArchiveRejected, ImageRejected):
        return None
    return base64.b64encode(cv2.imencode(".png", _thumbnail(image))[1].tobytes()).decode()


def _thumbnail(image: Image) -> Image:
    """The image, shrunk where it is larger than a thumbnail; never enlarged: pages do that without bytes."""
    height, width = image.shape[:2]
    ratio = SIDE_MAX / max(height, width)
    if ratio >= 1:
        return image
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
