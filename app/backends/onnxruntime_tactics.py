"""Which of two ways to compute the same network is the faster one on these processors: found by running both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.tensors import DType, Shape, ShapeRange, Signature, TensorSpec

_TRIAL_S = 0.6  # for one number of threads; both get half
_RUNS_MIN = 2  # of each, however long they take
_DIFFERENCE_MAX = 1e-5  # of the largest number of an output: a tenth of what an fp32 engine is allowed
_GAIN = 0.97  # of the time at most, or the plain way is kept


@dataclass(frozen=True)
class Verdict:
    """How one way did beside another."""

    ratios: Mapping[int, float]  # of its time to the other's, by the number of threads; empty: it answered otherwise

    @property
    def is_faster(self) -> bool:
        """Whether it is worth taking: requests that run beside others have one thread, a lone one has all."""
        return bool(self.ratios) and prod(self.ratios.values()) ** (1 / len(self.ratios)) <= _GAIN

    def __str__(self) -> str:
        if not self.ratios:
            return "it does not answer as the network does"
        return ", ".join(f"{ratio:.2f} of the time with {threads} thread(s)" for threads, ratio in self.ratios.items())


def compared(
    ways: Sequence[Callable[[int], Any]], inputs: Mapping[str, NDArray[Any]], threads: Sequence[int]
) -> Verdict:
    """Run both ways in turn.

    Args:
        ways: each opens a session of so many threads: the plain one first, then that which is judged.
        inputs: of each run.
        threads: numbers of threads to try, one after the other.

    Returns:
        What was found. A run that fails, or answers otherwise, ends the comparison.
    """
    ratios = {}
    for count in threads:
        sessions = [way(count) for way in ways]
        try:
            first, second = (session.run(None, inputs) for session in sessions)
        except Exception:  # the runtime's exceptions have no base of their own
            return Verdict({})
        if not all(map(_are_close, first, second)):
            return Verdict({})
        plain_s, judged_s = _best_s(sessions, inputs)
        ratios[count] = judged_s / plain_s
    return Verdict(ratios)


def made_up(signature: Signature, ranges: Mapping[str, ShapeRange]) -> dict[str, NDArray[Any]] | None:
    """Inputs of one row, or of the shapes that a build prefers; None where a length is not known."""
    shapes = {spec.name: _shape(spec, ranges) for spec in signature.inputs}
    if any(length < 0 for shape in shapes.values() for length in shape):
        return None
    random = np.random.default_rng(0)
    return {spec.name: _values(random, spec, shapes[spec.name]) for spec in signature.inputs}


def _values(random: np.random.Generator, spec: TensorSpec, shape: Shape) -> NDArray[Any]:
    if spec.dtype is DType.UINT8:  # pixels
        return random.integers(0, 256, shape, np.uint8)
    if spec.dtype.is_float:
        return random.normal(size=shape).astype(spec.dtype.numpy)
    return np.zeros(shape, spec.dtype.numpy)  # what any index may be


def _shape(spec: TensorSpec, ranges: Mapping[str, ShapeRange]) -> Shape:
    if spec.name in ranges:
        return ranges[spec.name].opt
    return tuple(1 if axis == 0 and length < 0 else length for axis, length in enumerate(spec.shape))


def _are_close(first: NDArray[Any], second: NDArray[Any]) -> bool:
    if first.shape != second.shape or first.dtype.kind != "f" or not first.size:
        return bool(np.array_equal(first, second))
    # Written so that a NaN is not close to anything.
    return bool(np.abs(first - second).max() <= _DIFFERENCE_MAX * np.abs(first).max())


def _best_s(sessions: Sequence[Any], inputs: Mapping[str, NDArray[Any]]) -> tuple[float, ...]:
    """The shortest run of each: whatever else keeps the processors busy makes runs longer, never shorter."""
    best_s = [float("inf") for _ in sessions]
    end_s, runs = time.perf_counter() + _TRIAL_S, 0
    while runs < _RUNS_MIN or time.perf_counter() < end_s:
        for number, session in enumerate(sessions):
            started_s = time.perf_counter()
            session.run(None, inputs)
            best_s[number] = min(best_s[number], time.perf_counter() - started_s)
        runs += 1
    return tuple(best_s)
