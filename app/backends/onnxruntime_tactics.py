"""Which of two ways to compute the same network is the faster one on these processors: found by running both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.tensors import DType, Shape, ShapeRange, Signature, TensorSpec

_TRIAL_S = 1.0  # for one number of threads; both get half
_RUNS_MIN = 2  # of each, however long they take
_DIFFERENCE_MAX = 1e-5  # of the largest number of an output: a tenth of what an fp32 engine is allowed
_ROWS = 3  # of a run, beside one
_GAIN = 0.97  # of the time at most: less is noise


@dataclass(frozen=True)
class Verdict:
    """How one way did beside another."""

    ratios: Mapping[int, float]  # of its time to the other's, by the number of threads; empty: it answered otherwise

    @property
    def is_always_faster(self) -> bool:
        """Whether it is worth taking whatever the number of threads: a lone request has all, others one each."""
        return bool(self.ratios) and all(ratio <= _GAIN for ratio in self.ratios.values())

    @property
    def is_faster_with_one_thread(self) -> bool:
        """Whether it is worth taking for runs of one thread."""
        return self.ratios.get(1, _GAIN + 1) <= _GAIN

    def __str__(self) -> str:
        if not self.ratios:
            return "never: it does not answer as the network does"
        when = "in runs of one thread" if self.is_faster_with_one_thread else "never"
        told = ", ".join(f"{ratio:.2f} of the time with {threads} thread(s)" for threads, ratio in self.ratios.items())
        return f"{'always' if self.is_always_faster else when}: {told}"


def compared(
    ways: Sequence[Callable[[int], Any]], inputs: Sequence[Mapping[str, NDArray[Any]]], threads: Sequence[int]
) -> Verdict:
    """Run both ways in turn.

    Args:
        ways: each opens a session of so many threads: the plain one first, then that which is judged.
        inputs: of runs whose answers have to agree; the first are those that are timed.
        threads: numbers of threads to try, one after the other.

    Returns:
        What was found. A run that fails, or answers otherwise, ends the comparison.
    """
    ratios = {}
    for count in threads:
        plain, judged = (way(count) for way in ways)
        try:
            agree = all(_agree(plain, judged, given) for given in inputs)
        except Exception:  # the runtime's exceptions have no base of their own
            agree = False
        if not agree:
            return Verdict({})
        ratios[count] = _ratio(plain, judged, inputs[0])
    return Verdict(ratios)


def made_up(signature: Signature, ranges: Mapping[str, ShapeRange]) -> list[dict[str, NDArray[Any]]]:
    """Inputs of one row, or of the shapes that a build prefers, and of several rows where their number is open; none
    where another length is not known."""
    random = np.random.default_rng(0)
    found = []
    for rows in (1, _ROWS):
        shapes = {spec.name: _shape(spec, ranges, rows) for spec in signature.inputs}
        if any(length < 0 for shape in shapes.values() for length in shape):
            return []
        found.append({spec.name: _values(random, spec, shapes[spec.name]) for spec in signature.inputs})
    return found


def _values(random: np.random.Generator, spec: TensorSpec, shape: Shape) -> NDArray[Any]:
    if spec.dtype is DType.UINT8:  # pixels
        return random.integers(0, 256, shape, np.uint8)
    if spec.dtype.is_float:
        return random.normal(size=shape).astype(spec.dtype.numpy)
    return np.zeros(shape, spec.dtype.numpy)  # what any index may be


def _shape(spec: TensorSpec, ranges: Mapping[str, ShapeRange], rows: int) -> Shape:
    if spec.name in ranges:
        return ranges[spec.name].opt
    return tuple(rows if axis == 0 and length < 0 else length for axis, length in enumerate(spec.shape))


def _agree(plain: Any, judged: Any, inputs: Mapping[str, NDArray[Any]]) -> bool:
    return all(map(_are_close, plain.run(None, inputs), judged.run(None, inputs)))


def _are_close(first: NDArray[Any], second: NDArray[Any]) -> bool:
    if first.shape != second.shape or first.dtype.kind != "f" or not first.size:
        return bool(np.array_equal(first, second))
    # Written so that a NaN is not close to anything.
    return bool(np.abs(first - second).max() <= _DIFFERENCE_MAX * np.abs(first).max())


def _ratio(plain: Any, judged: Any, inputs: Mapping[str, NDArray[Any]]) -> float:
    """The median of the ratios of runs that followed each other: what else slows the processors slows both."""
    ratios: list[float] = []
    end_s = time.perf_counter() + _TRIAL_S
    while len(ratios) < _RUNS_MIN or time.perf_counter() < end_s:
        started_s = time.perf_counter()
        plain.run(None, inputs)
        between_s = time.perf_counter()
        judged.run(None, inputs)
        ratios.append((time.perf_counter() - between_s) / (between_s - started_s))
    return median(ratios)
