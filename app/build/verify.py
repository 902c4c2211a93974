"""The proof of an engine: its answers against the source model's, its batch axis, its speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from app.backends.base import Context, LoadedEngine, Progress
from app.build.compare import Comparison, problems, refuse_other_names
from app.build.graph import Source
from app.build.joining import ROWS, dependence
from app.build.latency import measured_latency
from app.build.plan import Plan
from app.build.probes import full_contrast
from app.build.reference import Reference
from app.build.shapes import RunShapes, Shapes
from app.build.tolerances import joined_tolerance
from app.domain.builds import Accuracy, Latency, Precision, Tolerance
from app.domain.errors import AccuracyLost, ExecutionFailed, ShapesContradict, SourceFailed
from app.domain.tensors import ANY, Shape, Signature, Tensors, TensorSpec

_SAMPLES = 8  # rows compared at least
_BULK_ROWS = 8  # a run of samples, where the model takes any number
_PROBE_MARGIN_DB = 5  # images that no sample is like are allowed to lose so much more


@dataclass(frozen=True)
class Proof:
    accuracy: Accuracy
    problems: tuple[str, ...]  # what is outside the tolerance; the rest is then not proven
    outputs: tuple[TensorSpec, ...]  # as declared, where runs bear it out
    rows_max: int  # rows that may be joined into one run
    latency: Latency
    device_bytes: int  # that the engine holds after these runs


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
        self, engine: LoadedEngine, reference: Reference, plan: Plan, precision: Precision, progress: Progress
    ) -> None:
        self._engine = engine
        self._context: Context = engine.open_context()
        self._reference = reference
        self._plan = plan
        self._source = plan.source
        self._shapes = plan.shapes
        self._precision = precision
        self._progress = progress
        self._held = plan.held_back.endless() if plan.held_back is not None else None
        classifier = Signature(self._source.inputs, self._source.outputs).is_classifier
        self._comparison = Comparison(self._source.outputs, classifier=classifier)
        # Random inputs where there are samples: shapes that these do not have, and values that INT8 was not made for.
        self._beside = Comparison(self._source.outputs, classifier=False)
        self._probed = Comparison(self._source.outputs, classifier=False)
        self._observed: dict[str, set[Shape]] = {spec.name: set() for spec in self._source.outputs}
        self._seed = 0
        self._fails_at_rows: int | None = None

    def proof(self, tolerance: Tolerance, rows_limit: int) -> Proof:
        """Run everything, once.

        Args:
            rows_limit: rows that may be joined when the request sets no largest shape.

        Raises:
            AccuracyLost: the engine's answers are malformed, or not finite where the model's are.
            ShapesContradict: the model itself fails at the smallest or largest shapes that were asked for.
        """
        with self._closing():
            accuracy, found = self._measured(tolerance)
            outputs = self._observed_outputs()
            rows_max = 1 if found else self._rows_max(outputs, rows_limit)
            inputs, _ = self._reference.sample(self._shapes.base, seed=1)
            latency = measured_latency(self._context, inputs, self._shapes.rows)
            return Proof(accuracy, found, outputs, rows_max, latency, self._engine.device_bytes)

    def measured(self, tolerance: Tolerance) -> tuple[Accuracy, tuple[str, ...]]:
        """The first part of the proof: how far the answers are off, and what of that is not tolerated."""
        with self._closing():
            return self._measured(tolerance)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._context.close()
            if self._held is not None:
                self._held.close()

    def _measured(self, tolerance: Tolerance) -> tuple[Accuracy, tuple[str, ...]]:
        refuse_other_names(self._engine.signature, Signature(self._source.inputs, self._source.outputs))
        self._run_all()
        return self._accuracy(tolerance)

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
        self._run_rest()
        self._run_probes()

    def _run_rest(self) -> None:
        """Until enough rows are compared, and every sample is."""
        held = self._plan.held_back
        shapes, rows = self._shapes.base, self._shapes.rows
        if held is not None and self._fails_at_rows is None and self._shapes.takes_rows(_BULK_ROWS):
            shapes, rows = self._shapes.with_rows(_BULK_ROWS), _BULK_ROWS
        while self._comparison.rows < max(_SAMPLES, held.samples.count if held else 0):
            self._run(shapes, rows)

    def _run_probes(self) -> None:
        """Images that no sample is like, for ranges that fit the samples only."""
        recipe, rows = self._plan.preprocess, self._shapes.rows
        if self._precision is not Precision.INT8 or recipe is None:
            return
        if self._shapes.base != {recipe.input: (rows, *recipe.row_shape)}:
            return
        while self._probed.rows < _SAMPLES:
            inputs = full_contrast(recipe, rows, seed=self._probed.rows)
            self._probed.add(self._reference.run(inputs), self._context.run(inputs), rows)

    def _accuracy(self, tolerance: Tolerance) -> tuple[Accuracy, tuple[str, ...]]:
        runtime = self._reference.runtime
        if self._plan.is_random:
            self._progress.warn(
                "The model draws random numbers, so its answers cannot be compared: only dtypes, shapes and finiteness"
                " were checked."
            )
            return Accuracy((), self._comparison.rows, inputs="random", reference=runtime), ()
        accuracy = self._comparison.accuracy(runtime, "random" if self._held is None else "held-back")
        if self._plan.held_back is not None:  # rows are compared in several shapes: few samples come more than once
            accuracy = replace(accuracy, samples=min(accuracy.samples, self._plan.held_back.samples.count))
        found = problems(accuracy, tolerance)
        if self._beside.rows and self._precision is not Precision.INT8:
            found += problems(self._beside.accuracy(runtime), tolerance)
        self._warn_of_labels(accuracy)
        return accuracy, found + self._range_problems(tolerance)

    def _range_problems(self, tolerance: Tolerance) -> tuple[str, ...]:
        if not self._probed.rows:
            return ()
        worst = min(output.sqnr_db for output in self._probed.accuracy("").outputs)
        limit = tolerance.sqnr_db - _PROBE_MARGIN_DB
        told = f"On made-up images of full contrast the engine keeps SQNR {worst:.1f} dB"
        if worst < limit:
            return (f"{told} (at least {limit:g} is wanted): the samples are darker or flatter than images can be.",)
        if worst < tolerance.sqnr_db:
            self._progress.warn(
                f"{told} only: make sure that the samples are as bright and varied as what is seen in use."
            )
        return ()

    def _warn_of_labels(self, accuracy: Accuracy) -> None:
        right = accuracy.labelled
        classes = max((shape[-1] for shape in self._observed[self._source.outputs[0].name] if shape), default=1)
        if right is not None and right.source <= 2 / classes:
            self._progress.warn(
                f"The model as uploaded is right on {right.source:.1%} of {right.samples} labelled samples, hardly"
                " better than guessing: labels, samples or preprocessing are not those it was trained with."
            )

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
        reason = self._joining_refused(outputs) or dependence(
            self._context, self._reference, self._source, self._shapes, joined_tolerance(self._source, self._precision)
        )
        if reason:
            self._progress.step(f"requests are never joined into one run: {reason}")
            return 1
        high = limit if self._shapes.rows_max is None else self._shapes.rows_max
        self._progress.step(f"rows proven independent: up to {max(1, high)} are joined into one run")
        return max(1, high)

    def _joining_refused(self, outputs: tuple[TensorSpec, ...]) -> str:
        """Why rows may not be joined, as seen so far; "" when nothing speaks against it."""
        if self._plan.is_random:
            return "the model draws random numbers"
        if any(not spec.shape or spec.shape[0] != ANY for spec in outputs):
            return "not every output has a batch axis"
        return f"the model fails with {self._fails_at_rows} rows" if self._fails_at_rows is not None else ""

    def _run(self, shapes: Shapes, rows: int) -> None:
        inputs, classes = self._sampled(shapes, rows)
        comparison = self._beside if self._held is not None and not inputs else self._comparison
        inputs, expected = self._expected(inputs, shapes)
        try:
            answer = self._context.run(inputs)
        except ExecutionFailed as error:
            raise AccuracyLost(
                f"The engine fails on inputs that the model accepts: {error.detail}",
                hint="Build with simplify=false; if it still fails, the runtime's optimiser is at fault.",
            ) from error
        for name, tensor in answer.items():
            self._observed[name].add(tensor.shape)
        if self._plan.is_random:
            comparison.skip(answer, rows)
        else:
            comparison.add(expected, answer, rows, classes)

    def _sampled(self, shapes: Shapes, rows: int) -> tuple[Tensors, list[int | None]]:
        """The next samples in these shapes with their classes; nothing when samples have other shapes."""
        if self._held is None or not self._plan.takes_samples(shapes, rows):
            return {}, []
        taken = [next(self._held) for _ in range(rows)]
        inputs = {name: np.concatenate([row[name] for row, _ in taken]) for name in shapes}
        return inputs, [label for _, label in taken]

    def _expected(self, inputs: Tensors, shapes: Shapes) -> tuple[Tensors, Tensors]:
        """The inputs, random ones when there are none, and the model's answer."""
        if not inputs:
            self._seed += 1
            return self._reference.sample(shapes, self._seed - 1)
        try:
            return inputs, self._reference.run(inputs)
        except ExecutionFailed as error:
            raise SourceFailed(
                f"The uploaded model fails on samples of the calibration archive: {error.detail}",
                hint="Put only samples into the archive that the model can take.",
            ) from error

    def _run_bound(self, bound: str) -> None:
        shapes = {**self._shapes.base, **{name: getattr(ends, bound) for name, ends in self._plan.ranges.items()}}
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
            yield from (rows for rows in ROWS if rows != self._shapes.rows and self._shapes.admits(rows))


def _merged(declared: Shape, observed: set[Shape]) -> Shape:
    ranks = {len(shape) for shape in observed}
    if ranks != {len(declared)}:
        declared = next(iter(observed)) if len(ranks) == 1 else declared
    same_rank = [shape for shape in observed if len(shape) == len(declared)]
    return tuple(
        length if all(shape[axis] == length for shape in same_rank) else ANY for axis, length in enumerate(declared)
    )
