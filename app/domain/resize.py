"""Images in another size."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from app.domain.decode import Image

HALVED_FROM = 4  # pixels for one: more taps take longer, and little more is gained


def antialiased(image: Image, width: int, height: int) -> Image:
    """Shrink nearly as Pillow's bilinear filter does: it weighs pixels by a triangle as wide as two of the result.

    Pixels are joined in twos while there are many for one. Then all are blurred by a triangle, and the result is
    interpolated linearly. OpenCV vectorises each of these steps: less than half of the time of its INTER_AREA, and a
    third as far from Pillow's result (docs/decisions/0001-recipe.md).

    Args:
        image: (height, width) or (height, width, channels).

    Returns:
        uint8 of the size asked for; an axis that grows is interpolated linearly.
    """
    image = _halved(image, width, height)
    across, down = _taps(image.shape[1], width), _taps(image.shape[0], height)
    if len(across) > 1 or len(down) > 1:
        blurred = cv2.sepFilter2D(image, -1, across, down, borderType=cv2.BORDER_REPLICATE)
        image = np.asarray(blurred, np.uint8)
    return _linear(image, width, height)


def _halved(image: Image, width: int, height: int) -> Image:
    while True:
        before_height, before_width = image.shape[:2]
        next_width = (before_width + 1) // 2 if before_width >= HALVED_FROM * width else before_width
        next_height = (before_height + 1) // 2 if before_height >= HALVED_FROM * height else before_height
        if (next_width, next_height) == (before_width, before_height):
            return image
        image = _linear(image, next_width, next_height)


@lru_cache(maxsize=1024)
def _taps(before: int, after: int) -> NDArray[np.float32]:
    """The triangle that gives the blurred and interpolated image the variance of Pillow's filter.

    With s pixels for one of the result, in these pixels: Pillow's has the variance s² / 6, linear interpolation the
    mean of f (1 − f) over the places f that it takes between two pixels.
    """
    shrinks = before / after
    places = ((np.arange(after) + 0.5) * shrinks - 0.5) % 1
    wanted = shrinks**2 / 6 - float(np.mean(places * (1 - places))) if shrinks > 1 else 0.0
    narrow, wide = 1.0, float(HALVED_FROM)
    while wide - narrow > 1e-3:
        between = (narrow + wide) / 2
        narrow, wide = (between, wide) if _variance(_triangle(between)) < wanted else (narrow, between)
    return _triangle(narrow).astype(np.float32)


def _triangle(half: float) -> NDArray[np.float64]:
    """A triangle of that half width in pixels, at least 1: [1] for 1, [1, 2, 1] / 4 for 2."""
    heights = half - np.abs(np.arange(1 - ceil(half), ceil(half)))
    return np.asarray(heights / heights.sum(), np.float64)


def _variance(taps: NDArray[np.float64]) -> float:
    reach = len(taps) // 2
    return float(np.sum(taps * np.arange(-reach, reach + 1) ** 2))


def _linear(image: Image, width: int, height: int) -> Image:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
