"""The proof of an engine: its answers against the source model's, its batch axis, its speed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from app.backends.base import Context, LoadedEngine, Progress
from app.build.compare import Comparison, is_within, refuse_other_names, refuse_outside
from app.build.graph import Source
from app.build.reference import Reference
from app.build.shapes import RunShapes, Shapes
from app.domain.builds import Accuracy, Latency, Tolerance
from app.domain.errors import AccuracyLost, ExecutionFailed, ShapesContradict, SourceFailed
from app.domain.tensors import ANY, Shape, ShapeRange, Signature, Tensors, TensorSpec

_ROWS = (1, 2, 3, 5)  # batch lengths that are compared and joined
_SAMPLES = 8  # rows compared at least
_LATENCY_RUNS = 200  # at most,
_LATENCY_S = 2.0  # in so many seconds
_HALF_TOLERANCE = Tolerance(sqnr_db=40, cosine=0.9999, max_rel=1e-2, top1=0.99)
_QUANTISED_TOLERANCE = Tolerance(sqnr_db=15, cosine=0.99, max_rel=0.15, top1=0.98)
# One engine, the same rows joined or alone: only the order of sums differs, whatever the request tolerates.
_JOINED_TOLERANCE = Tolerance(sqnr_db=60, cosine=0.9999, max_rel=1e-3)


@dataclass(frozen=True)
class Proof:
    accuracy: Accuracy
    outputs: tuple[TensorSpec, ...]  # as declared, where runs bear it out
    rows_max: int  # rows that may be joined into one run
    latency: Latency


def tolerance_of(source: Source, asked: Tolerance | None) -> Tolerance:
    """What was asked for, else what the model's own number formats allow.

    A model that rounds inside itself answers differently whenever two operators are fused, and neither answer is
    the better one. Measured: ResNet-18 in float16, optimised against not: 74 dB.
    """
    if asked is not None:
        return asked
    if source.is_quantised:
        return _QUANTISED_TOLERANCE
    return _HALF_TOLERANCE if source.is_half else Tolerance()


def is_random(reference: Reference, source: Source, shapes: RunShapes) -> bool:
    """Whether two runs on the same input differ: then there is nothing to compare an engine with."""
    if source.is_random:
        return True
    inputs, first = reference.sample(shapes.base, seed=0)
    second = reference.run(inputs)
    return not all(np.array_equal(first[name], second[name], equal_nan=True) for name in first)


class Trial:
    """Runs of an engine beside its source model, on the same inputs."""

    def __init__(
        self,
        engine: LoadedEngine,
        reference: Reference,
        source: Source,
        shapes: RunShapes,
        ranges: Mapping[str, ShapeRange],
        progress: Progress,
        *,
        is_random: bool,
    ) -> None:
        self._engine = engine
        self._context: Context = engine.open_context()
        self._reference = reference
        self._source = source
        self._shapes = shapes
        self._ranges = ranges
        self._progress = progress
        self._is_random = is_random
        classifier = Signature(source.inputs, source.outputs).is_classifier
        self._comparison = Comparison(source.outputs, classifier=classifier)
        self._observed: dict[str, set[Shape]] = {spec.name: set() for spec in source.outputs}
        self._seed = 0
        self._fails_at_rows: int | None = None

    def proof(self, tolerance: Tolerance, rows_limit: int) -> Proof:
        """Run everything, once.

        Args:
            rows_limit: rows that may be joined when the request sets no largest shape.

        Raises:
            AccuracyLost: the engine's answers are outside the tolerance, or malformed.
            ShapesContradict: the model itself fails at the smallest or largest shapes that were asked for.
        """
        with closing(self._context):
            refuse_other_names(self._engine.signature, Signature(self._source.inputs, self._source.outputs))
            self._run_all()
            accuracy = self._accuracy(tolerance)
            outputs = self._observed_outputs()
            rows_max = self._rows_max(outputs, rows_limit)
            inputs, _ = self._reference.sample(self._shapes.base, seed=1)
            return Proof(accuracy, outputs, rows_max, _latency(self._context, inputs, self._shapes.rows))

    def _run_all(self) -> None:
        """Base shapes, the ends of the requested ranges, and other batch lengths."""
        for _ in range(2):
            self._run(self._shapes.base, self._shapes.rows)
        for bound in ("min", "max"):
            self._run_bound(bound)
        for rows in self._batch_lengths():
            try:
                for _ in range(2):
                    self._run(self._shapes.with_rows(rows), rows)
            except SourceFailed as error:
                self._fails_at_rows = rows
                self._progress.warn(f"The model declares any batch length but fails with {rows} rows: {error.detail}")
                break
        while self._comparison.rows < _SAMPLES:
            self._run(self._shapes.base, self._shapes.rows)

    def _accuracy(self, tolerance: Tolerance) -> Accuracy:
        if self._is_random:
            self._progress.warn(
                "The model draws random numbers, so its answers cannot be compared: only dtypes, shapes and finiteness"
                " were checked."
            )
            return Accuracy((), self._comparison.rows, inputs="random", reference=self._reference.runtime)
        accuracy = self._comparison.accuracy(self._reference.runtime)
        refuse_outside(accuracy, tolerance)
        return accuracy

    def _observed_outputs(self) -> tuple[TensorSpec, ...]:
        """The declared outputs; an axis whose length was seen to be another is any length."""
        return tuple(
            TensorSpec(spec.name, spec.dtype, _merged(spec.shape, self._observed[spec.name]))
            for spec in self._source.outputs
        )

    def _rows_max(self, outputs: tuple[TensorSpec, ...], limit: int) -> int:
        """Rows that may be joined: many only when the answer to a row is proven not to depend on its neighbours."""
        if not self._shapes.is_batched:
            return 1
        reason = self._joining_refused(outputs)
        if reason:
            self._progress.step(f"requests are never joined into one run: {reason}")
            return 1
        high = limit if self._shapes.rows_max is None else self._shapes.rows_max
        self._progress.step(f"rows proven independent: up to {max(1, high)} are joined into one run")
        return max(1, high)

    def _joining_refused(self, outputs: tuple[TensorSpec, ...]) -> str:
        """Why rows may not be joined; "" when they may."""
        if self._is_random:
            return "the model draws random numbers"
        if any(not spec.shape or spec.shape[0] != ANY for spec in outputs):
            return "not every output has a batch axis"
        if self._fails_at_rows is not None:
            return f"the model fails with {self._fails_at_rows} rows"
        unit = max(1, self._shapes.rows_min)
        joinable = [parts for parts in _ROWS[1:] if self._shapes.admits(parts * unit)]
        for parts in joinable:
            if not self._is_independent(unit, parts):
                return f"the answers to {parts * unit} rows differ from those to the rows alone"
        return "" if joinable else "the shapes asked for leave no room"

    def _is_independent(self, unit: int, parts: int) -> bool:
        """Whether a run of `parts` pieces of `unit` rows answers as the pieces do alone."""
        comparison = Comparison(self._source.outputs, classifier=False)
        try:
            inputs, _ = self._reference.sample(self._shapes.with_rows(parts * unit), seed=2 * parts)
            joined = self._context.run(inputs)
            pieces = [self._context.run(self._piece(inputs, start, unit)) for start in range(0, parts * unit, unit)]
            comparison.add({name: np.concatenate([piece[name] for piece in pieces]) for name in joined}, joined, parts)
        except (AccuracyLost, ExecutionFailed, SourceFailed, ValueError):  # axis 0 of the answer is not the rows'
            return False
        allowed = _HALF_TOLERANCE if self._source.is_half else _JOINED_TOLERANCE
        return all(is_within(output, allowed) for output in comparison.accuracy("").outputs)

    def _piece(self, inputs: Tensors, start: int, rows: int) -> Tensors:
        """These rows of each input, along every axis that follows the batch length."""
        piece = {}
        for name, tensor in inputs.items():
            for axis in self._shapes.batch_axes[name]:
                tensor = tensor.take(range(start, start + rows), axis)
            piece[name] = np.ascontiguousarray(tensor)
        return piece

    def _run(self, shapes: Shapes, rows: int) -> None:
        inputs, expected = self._reference.sample(shapes, self._seed)
        self._seed += 1
        try:
            answer = self._context.run(inputs)
        except ExecutionFailed as error:
            raise AccuracyLost(
                f"The engine fails on inputs that the model accepts: {error.detail}",
                hint="Build with simplify=false; if it still fails, the runtime's optimiser is at fault.",
            ) from error
        for name, tensor in answer.items():
            self._observed[name].add(tensor.shape)
        if self._is_random:
            self._comparison.skip(answer, rows)
        else:
            self._comparison.add(expected, answer, rows)

    def _run_bound(self, bound: str) -> None:
        shapes = {**self._shapes.base, **{name: getattr(ends, bound) for name, ends in self._ranges.items()}}
        if shapes == self._shapes.base:
            return
        lengths = {shape[0] if shape else 1 for shape in shapes.values()}
        try:
            self._run(shapes, lengths.pop() if len(lengths) == 1 else 1)
        except SourceFailed as error:
            raise ShapesContradict(
                f"The model itself fails at the {bound}imum of the shapes asked for. {error.detail}",
                hint=f"Give {bound}_shapes that the model accepts.",
            ) from error

    def _batch_lengths(self) -> Iterator[int]:
        if any(self._shapes.batch_axes.values()):
            yield from (rows for rows in _ROWS if rows != self._shapes.rows and self._shapes.admits(rows))


def _merged(declared: Shape, observed: set[Shape]) -> Shape:
    ranks = {len(shape) for shape in observed}
    if ranks != {len(declared)}:
        declared = next(iter(observed)) if len(ranks) == 1 else declared
    same_rank = [shape for shape in observed if len(shape) == len(declared)]
    return tuple(
        length if all(shape[axis] == length for shape in same_rank) else ANY for axis, length in enumerate(declared)
    )


def _latency(context: Context, inputs: Tensors, rows: int) -> Latency:
    """Time runs, one after the other, on one context that has run before."""
    times_s: list[float] = []
    end = time.perf_counter() + _LATENCY_S
    while len(times_s) < _LATENCY_RUNS and (not times_s or time.perf_counter() < end):
        start = time.perf_counter()
        context.run(inputs)
        times_s.append(time.perf_counter() - start)
    p50, p99 = np.percentile(times_s, (50, 99)) * 1e3
    return Latency(
        p50_ms=float(p50),
        p99_ms=float(p99),
        throughput_per_s=rows * len(times_s) / sum(times_s),
        rows=rows,
        runs=len(times_s),
    )
