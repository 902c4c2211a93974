"""The networks of the check on a GPU, with inputs, labels and calibration samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.backends.base import Samples
from app.domain.tensors import ShapeRange, Tensor, Tensors
from tests import networks

DIGITS = Path(__file__).parents[1] / "examples/digits"
RESNET_ROWS = 32


class Arrays(Samples):
    """Calibration samples from memory."""

    def __init__(self, name: str, rows: Tensor) -> None:
        self._name = name
        self._rows = rows

    @property
    def count(self) -> int:
        return len(self._rows)

    @property
    def key(self) -> str:
        return f"{self._name} {self._rows.shape} {float(self._rows.sum())}"

    def batches(self, rows: int) -> Iterator[Tensors]:
        for start in range(0, len(self._rows), rows):
            yield {self._name: np.ascontiguousarray(self._rows[start : start + rows])}


@dataclass(frozen=True)
class Network:
    name: str
    model: Path
    input: str
    inputs: Tensor  # that answers are compared on
    labels: Tensor | None
    samples: Arrays
    largest: int

    @property
    def ranges(self) -> dict[str, ShapeRange]:
        one = (1, *self.inputs.shape[1:])
        return {self.input: ShapeRange(one, one, (self.largest, *one[1:]))}


def resnet18(folder: Path) -> Network:
    path = networks.saved(networks.resnet18(), folder, "resnet18.onnx")
    x = pictures(72, 224)
    return Network("resnet18", path, "image", x[:32], None, Arrays("image", x[32:]), RESNET_ROWS)


def digits() -> Network:
    heldout = np.load(DIGITS / "heldout.npz")
    x = (heldout["images"].astype(np.float32) / 255).reshape(-1, 1, 8, 8)
    return Network(
        "digits", DIGITS / "digits.onnx", "image", x[200:], heldout["labels"][200:], Arrays("image", x[:200]), 64
    )


def pictures(count: int, side: int) -> Tensor:
    """Smooth patches with noise, normalised as photographs are."""
    random = np.random.default_rng(4)
    coarse = random.uniform(-2, 2, (count, 3, 8, 8)).astype(np.float32)
    smooth = coarse.repeat(side // 8, 2).repeat(side // 8, 3)
    return np.ascontiguousarray(smooth + random.normal(0, 0.2, smooth.shape).astype(np.float32))
