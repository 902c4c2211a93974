"""What a build has decided before anything long starts."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from app.backends.base import Samples
from app.build.graph import Source
from app.build.shapes import RunShapes, Shapes
from app.domain.preprocess import Preprocess
from app.domain.tensors import ShapeRange, Tensors


@dataclass(frozen=True)
class HeldBack:
    """Samples to prove an engine with: calibration never sees them."""

    samples: Samples
    classes: Sequence[int | None]  # of each, as its label says; None: not known

    def endless(self) -> Generator[tuple[Tensors, int | None], None, None]:
        """One row after the other with its class, from the first again after the last; the class only once."""
        classes = self.classes
        while True:
            yield from zip(self.samples.batches(1), classes, strict=True)
            classes = [None] * self.samples.count


@dataclass(frozen=True)
class Plan:
    source: Source
    ranges: Mapping[str, ShapeRange]
    shapes: RunShapes
    preprocess: Preprocess | None
    is_random: bool  # two runs on the same input differ, so there is nothing to compare with
    held_back: HeldBack | None = None  # None: random inputs have to do

    def takes_samples(self, shapes: Shapes, rows: int) -> bool:
        """Whether rows of samples make inputs of these shapes."""
        return self.held_back is not None and all(
            shape == (rows, *self.shapes.base[name][1:]) for name, shape in shapes.items()
        )
