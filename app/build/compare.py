"""How far the answers of an engine are from those of its source model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from app.domain.builds import Accuracy, LabelledAccuracy, OutputAccuracy, Tolerance
from app.domain.errors import AccuracyLost
from app.domain.tensors import Signature, Tensor, Tensors, TensorSpec, described, shape_text

SQNR_CAP_DB = 200.0
_SHOWN = 3  # outputs named in a failure
_HINT = "Build with simplify=false, or allow more with the option tolerance if the difference does not matter to you."


class Comparison:
    """Collects runs of both, output by output."""

    def __init__(self, outputs: tuple[TensorSpec, ...], *, classifier: bool) -> None:
        self._sums = {spec.name: _Sums(spec.name) for spec in outputs}
        self._outputs = outputs
        self._ranking = _Ranking() if classifier else None
        self.rows = 0  # taken in so far

    def add(self, reference: Tensors, engine: Tensors, rows: int, classes: Sequence[int | None] = ()) -> None:
        """Take in one run of both on the same inputs.

        Args:
            classes: of the first rows, as their labels say; None: not known.

        Raises:
            AccuracyLost: an output differs in dtype or shape, or is not finite where the model's is.
        """
        for name, sums in self._sums.items():
            sums.add(reference[name], engine[name])
            if self._ranking is not None:
                self._ranking.add(reference[name], engine[name], classes)
        self.rows += rows

    def skip(self, engine: Tensors, rows: int) -> None:
        """Take in a run that cannot be compared, of a model with random operators.

        Raises:
            AccuracyLost: an output has not the declared dtype or rank, or is not finite.
        """
        for spec in self._outputs:
            answer = engine[spec.name]
            if answer.dtype != spec.dtype.numpy or answer.ndim != len(spec.shape):
                raise AccuracyLost(
                    f"The output {spec.name!r} is {answer.dtype.name} {shape_text(answer.shape)}; the model declares"
                    f" {described((spec,))}.",
                    hint=_HINT,
                )
            if spec.dtype.is_float and not np.isfinite(answer).all():
                raise AccuracyLost(f"The output {spec.name!r} is not finite.", hint=_HINT)
        self.rows += rows

    def accuracy(self, runtime: str, inputs: str = "random") -> Accuracy:
        """Everything so far.

        Args:
            inputs: what they were, as `Accuracy` says it.
        """
        outputs = tuple(sums.accuracy() for sums in self._sums.values())
        if self._ranking is None:
            return Accuracy(outputs, self.rows, inputs, runtime)
        (sums,) = self._sums.values()
        return self._ranking.added_to(Accuracy(outputs, self.rows, inputs, runtime), sums.rms_error)


def problems(accuracy: Accuracy, tolerance: Tolerance) -> tuple[str, ...]:
    """What is farther off than allowed, the worst output first; empty when nothing is."""
    outside = sorted((out for out in accuracy.outputs if not is_within(out, tolerance)), key=lambda out: out.sqnr_db)
    found = [
        f"The output {output.name!r} has SQNR {output.sqnr_db:.1f} dB (at least {tolerance.sqnr_db:g} is"
        f" wanted), cosine {output.cosine:.7f} (at least {tolerance.cosine:g}), largest relative error"
        f" {output.max_rel:.2e} (at most {tolerance.max_rel:g})."
        for output in outside[:_SHOWN]
    ]
    if len(outside) > _SHOWN:
        found.append(f"{len(outside) - _SHOWN} more outputs are outside their tolerance.")
    if accuracy.top1_agreement is not None and accuracy.top1_agreement < tolerance.top1:
        found.append(
            f"The engine names the same first class for {accuracy.top1_agreement:.1%} of the samples; at least"
            f" {tolerance.top1:.1%} is wanted."
        )
    return tuple(found)


def refuse_outside(accuracy: Accuracy, tolerance: Tolerance) -> None:
    """Raise AccuracyLost when an output is farther off than allowed."""
    found = problems(accuracy, tolerance)
    if found:
        raise AccuracyLost(" ".join(found), hint=_HINT)


def refuse_other_names(engine: Signature, model: Signature) -> None:
    """Raise AccuracyLost when inputs or outputs differ in name, dtype or order."""
    for role, ours, theirs in (("inputs", engine.inputs, model.inputs), ("outputs", engine.outputs, model.outputs)):
        if [(spec.name, spec.dtype) for spec in ours] != [(spec.name, spec.dtype) for spec in theirs]:
            raise AccuracyLost(
                f"The engine's {role} are {described(ours)}, the model's {described(theirs)}.",
                hint="Build with simplify=false.",
            )


def is_within(output: OutputAccuracy, tolerance: Tolerance) -> bool:
    return (
        output.sqnr_db >= tolerance.sqnr_db
        and output.cosine >= tolerance.cosine
        and output.max_rel <= tolerance.max_rel
    )


class _Sums:
    """Running sums of one output, in float64."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._max_abs = self._max_ref = 0.0
        self._ref2 = self._engine2 = self._dot = self._error2 = 0.0
        self._elements = 0

    @property
    def rms_error(self) -> float:
        """Root of the mean square of ref − engine."""
        return math.sqrt(self._error2 / self._elements) if self._elements else 0.0

    def add(self, reference: Tensor, engine: Tensor) -> None:
        if engine.dtype != reference.dtype or engine.shape != reference.shape:
            raise AccuracyLost(
                f"The engine answers {engine.dtype.name} {shape_text(engine.shape)} in the output {self._name!r}, the"
                f" model {reference.dtype.name} {shape_text(reference.shape)}.",
                hint=_HINT,
            )
        ref, ours = self._finite(reference.astype(np.float64), engine.astype(np.float64))
        if not ref.size:
            return
        error = ref - ours
        self._elements += ref.size
        self._max_abs = max(self._max_abs, float(np.abs(error).max()))
        self._max_ref = max(self._max_ref, float(np.abs(ref).max()))
        with np.errstate(over="ignore"):  # squares of the largest float64: accuracy() handles infinite sums
            self._ref2 += float(ref @ ref)
            self._engine2 += float(ours @ ours)
            self._dot += float(ref @ ours)
            self._error2 += float(error @ error)

    def accuracy(self) -> OutputAccuracy:
        if self._max_abs == 0:
            return OutputAccuracy(self._name, 0.0, 0.0, 1.0, SQNR_CAP_DB)
        max_rel = self._max_abs / self._max_ref if self._max_ref else math.inf
        sums = (self._ref2, self._engine2, self._error2)
        if not all(map(math.isfinite, sums)) or 0 in sums:
            # Squares that a float64 cannot hold, or one side all zeros: the largest error has to speak for all.
            sqnr_db, cosine = -20 * math.log10(max_rel), 1.0 if max_rel < 1e-3 else 0.0
        else:
            sqnr_db = 10 * math.log10(self._ref2 / self._error2)
            cosine = self._dot / math.sqrt(self._ref2) / math.sqrt(self._engine2)
        return OutputAccuracy(
            self._name,
            max_abs=min(self._max_abs, np.finfo(np.float64).max),
            max_rel=min(max_rel, np.finfo(np.float64).max),
            cosine=min(1.0, cosine),
            sqnr_db=max(-SQNR_CAP_DB, min(SQNR_CAP_DB, sqnr_db)),
        )

    def _finite(
        self, reference: NDArray[np.float64], engine: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both, flat, without the elements where the model itself is not finite; there the engine must be the same."""
        finite = np.isfinite(reference)
        if not np.array_equal(reference[~finite], engine[~finite], equal_nan=True):
            raise AccuracyLost(
                f"The model's output {self._name!r} has NaN or infinities where the engine's has not.", hint=_HINT
            )
        if not np.isfinite(engine[finite]).all():
            raise AccuracyLost(
                f"The engine's output {self._name!r} has NaN or infinities where the model's is finite.", hint=_HINT
            )
        return reference[finite], engine[finite]


class _Ranking:
    """The order of a classifier's scores in both, row by row."""

    def __init__(self) -> None:
        self._margins: list[float] = []  # between the reference's two best classes
        self._agree: list[bool] = []  # both name the same first class
        self._in_top5: list[bool] = []  # the reference's first class is among the engine's first five
        self._source_right: list[bool] = []  # of the rows with a known class
        self._engine_right: list[bool] = []

    def add(self, reference: Tensor, engine: Tensor, classes: Sequence[int | None]) -> None:
        scores = reference.astype(np.float64)
        if scores.ndim != 2 or scores.shape[1] < 2 or not np.isfinite(scores).all():
            return
        top = np.sort(scores, axis=1)
        first, ours = scores.argmax(axis=1), engine.argmax(axis=1)
        best = np.argsort(-engine.astype(np.float64), axis=1, kind="stable")[:, :5]
        self._margins.extend((top[:, -1] - top[:, -2]).tolist())
        self._agree.extend((first == ours).tolist())
        self._in_top5.extend((best == first[:, None]).any(axis=1).tolist())
        known = [row for row, label in enumerate(classes) if label is not None]
        self._source_right.extend(bool(first[row] == classes[row]) for row in known)
        self._engine_right.extend(bool(ours[row] == classes[row]) for row in known)

    def added_to(self, accuracy: Accuracy, rms_error: float) -> Accuracy:
        """The same with the agreement of both; a margin that the usual error can close decides nothing."""
        clear = [agree for agree, margin in zip(self._agree, self._margins, strict=True) if margin > 2 * rms_error]
        return replace(
            accuracy,
            top1_agreement=_share(clear),
            top5_agreement=_share(self._in_top5),
            near_ties=len(self._agree) - len(clear),
            labelled=self._labelled(),
        )

    def _labelled(self) -> LabelledAccuracy | None:
        source, engine = _share(self._source_right), _share(self._engine_right)
        if source is None or engine is None:
            return None
        return LabelledAccuracy(len(self._source_right), source, engine)


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
