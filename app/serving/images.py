"""From encoded images to what a run takes: decoded in parallel, in as few runs as the engine allows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import pairwise

import numpy as np

from app.domain.builds import EngineRecord
from app.domain.errors import ImageRejected, InvalidRequest, RecipeMissing
from app.domain.preprocess import SIZE_HINT, Preprocess, row_from_image
from app.domain.tensors import ANY, Signature, Tensor, Tensors, check_inputs, described
from app.serving.batcher import rows_limit


async def image_batches(images: Sequence[bytes | memoryview], record: EngineRecord, workers: Executor) -> list[Tensors]:
    """The inputs of each run, a row for each image, in the images' order; made off the event loop.

    Raises:
        InvalidRequest: there are no images.
        RecipeMissing: the engine takes tensors only.
        ImageRejected: names the image that cannot be decoded.
    """
    recipe = _recipe(record)
    rows = await _rows_from(images, recipe, workers)
    chunks = _chunks(rows, _rows_a_run(record.built.signature, recipe.input))
    return [{recipe.input: await _stacked(chunk, workers)} for chunk in chunks]


def image_input(image: memoryview, record: EngineRecord) -> Callable[[], Tensors]:
    """What makes the input of a run of one image, on any thread; it raises ImageRejected.

    Raises:
        RecipeMissing: the engine takes tensors only.
    """
    recipe = _recipe(record)

    def made() -> Tensors:
        tensors = {recipe.input: row_from_image(image, recipe)[np.newaxis]}
        check_inputs(tensors, record.built.signature)
        return tensors

    return made


def _recipe(record: EngineRecord) -> Preprocess:
    recipe = record.built.preprocess
    if recipe is None or len(record.built.signature.inputs) != 1:
        raise RecipeMissing(
            f"{record.ref} takes tensors: {described(record.built.signature.inputs)}.",
            hint="Send tensors, or build the engine with a recipe; it needs one image-shaped input, and where that"
            f" leaves its size open: {SIZE_HINT}.",
        )
    return recipe


async def _rows_from(images: Sequence[bytes | memoryview], recipe: Preprocess, workers: Executor) -> list[Tensor]:
    if not images:
        raise InvalidRequest("The request holds no image.", hint="Send at least one.")
    loop = asyncio.get_running_loop()
    work = [loop.run_in_executor(workers, row_from_image, image, recipe) for image in images]
    if len(work) == 1:
        return [await work[0]]
    rows = await asyncio.gather(*work, return_exceptions=True)
    for number, row in enumerate(rows, 1):
        if isinstance(row, ImageRejected):
            raise ImageRejected(f"Image {number} of {len(images)}: {row.detail}", hint=row.hint)
        if isinstance(row, BaseException):
            raise row
    return [row for row in rows if not isinstance(row, BaseException)]


async def _stacked(rows: list[Tensor], workers: Executor) -> Tensor:
    if len(rows) == 1:
        return rows[0][np.newaxis]
    return await asyncio.get_running_loop().run_in_executor(workers, partial(np.stack, rows))


def _rows_a_run(signature: Signature, name: str) -> int:
    """Most rows of one run; 1 where rows are not proven independent of each other."""
    length = signature.input(name).shape[0]
    return rows_limit(signature) if length == ANY else length


def _chunks(rows: list[Tensor], longest: int) -> list[list[Tensor]]:
    """As few chunks as possible, of nearly equal length: a short last one might be below the engine's minimum."""
    count = -(-len(rows) // max(1, longest))
    ends = [len(rows) * number // count for number in range(count + 1)]
    return [rows[start:end] for start, end in pairwise(ends)]
