"""How much calibration samples differ: black frames and copies of one picture teach nothing about ranges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.domain.preprocess import Layout, Preprocess
from app.domain.tensors import Tensor, Tensors

SPREAD_MIN = 0.01  # of the full scale of a pixel: 2.5 of 255 grey levels
_SIDE = 64  # pixels looked at along each axis, evenly spread


class Spread:
    """Running statistics of image rows, in units of a pixel's full scale; nothing for other rows."""

    def __init__(self, recipe: Preprocess | None) -> None:
        self._recipe = recipe
        self._count = 0
        self._sum: NDArray[np.float64] | float = 0.0
        self._squares: NDArray[np.float64] | float = 0.0
        self._within = 0.0

    def add(self, row: Tensors) -> None:
        if self._recipe is None:
            return
        pixels = _full_scale(row[self._recipe.input], self._recipe)
        self._count += 1
        self._sum = self._sum + pixels
        self._squares = self._squares + pixels * pixels
        self._within += float(pixels.std(axis=(1, 2)).mean())

    def problem(self) -> str:
        """Why these images cannot calibrate; "" when they can."""
        if self._recipe is None or not self._count:
            return ""
        within = self._within / self._count
        if within < SPREAD_MIN:
            return f"within an image the pixels differ by {within:.2%} of their full scale"
        variance = np.asarray(self._squares) / self._count - (np.asarray(self._sum) / self._count) ** 2
        across = float(np.sqrt(max(0.0, float(variance.mean()))))
        if across < SPREAD_MIN:
            return f"from image to image the pixels differ by {across:.2%} of their full scale"
        return ""


def _full_scale(row: Tensor, recipe: Preprocess) -> NDArray[np.float64]:
    """Some pixels of each channel, (channels, rows, columns), such that black to white is a step of 1."""
    planes = row if recipe.layout is Layout.NCHW else np.moveaxis(row, 2, 0)
    high, wide = (-(-length // _SIDE) for length in planes.shape[1:])
    std = np.broadcast_to(np.asarray(recipe.std, np.float64), recipe.channels)[:, None, None]
    return np.asarray(planes[:, ::high, ::wide], np.float64) * std / (255 * recipe.scale)
