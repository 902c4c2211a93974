"""How far the answers of an engine are from those of its source model."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from app.domain.builds import Accuracy, OutputAccuracy, Tolerance
from app.domain.errors import AccuracyLost
from app.domain.tensors import Signature, Tensor, Tensors, TensorSpec, described, shape_text

SQNR_CAP_DB = 200.0
_HINT = "Build with simplify=false, or allow more with the option tolerance if the difference does not matter to you."


class Comparison:
    """Collects runs of both, output by output."""

    def __init__(self, outputs: tuple[TensorSpec, ...], *, classifier: bool) -> None:
        self._sums = {spec.name: _Sums(spec.name) for spec in outputs}
        self._outputs = outputs
        self._ranking = _Ranking() if classifier else None
        self.rows = 0  # taken in so far

    def add(self, reference: Tensors, engine: Tensors, rows: int) -> None:
        """Take in one run of both on the same inputs.

        Raises:
            AccuracyLost: an output differs in dtype or shape, or is not finite where the model's is.
        """
        for name, sums in self._sums.items():
            sums.add(reference[name], engine[name])
            if self._ranking is not None:
                self._ranking.add(reference[name], engine[name])
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

    def accuracy(self, runtime: str) -> Accuracy:
        outputs = tuple(sums.accuracy() for sums in self._sums.values())
        top1 = self._ranking.agreement(outputs[0].max_abs) if self._ranking is not None else None
        return Accuracy(outputs, self.rows, inputs="random", reference=runtime, top1_agreement=top1)


def refuse_outside(accuracy: Accuracy, tolerance: Tolerance) -> None:
    """Raise AccuracyLost when an output is farther off than allowed."""
    for output in accuracy.outputs:
        if not is_within(output, tolerance):
            raise AccuracyLost(
                f"The output {output.name!r} has SQNR {output.sqnr_db:.1f} dB (at least {tolerance.sqnr_db:g} is"
                f" wanted), cosine {output.cosine:.7f} (at least {tolerance.cosine:g}), largest relative error"
                f" {output.max_rel:.2e} (at most {tolerance.max_rel:g}).",
                hint=_HINT,
            )
    if accuracy.top1_agreement is not None and accuracy.top1_agreement < tolerance.top1:
        raise AccuracyLost(
            f"The engine names the same first class for {accuracy.top1_agreement:.1%} of the samples; at least"
            f" {tolerance.top1:.1%} is wanted.",
            hint=_HINT,
        )


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
    """Whether both name the same first class, row by row."""

    def __init__(self) -> None:
        self._margins: list[float] = []
        self._agree: list[bool] = []

    def add(self, reference: Tensor, engine: Tensor) -> None:
        scores = reference.astype(np.float64)
        if scores.ndim != 2 or scores.shape[1] < 2 or not np.isfinite(scores).all():
            return
        top = np.sort(scores, axis=1)
        self._margins.extend((top[:, -1] - top[:, -2]).tolist())
        self._agree.extend((scores.argmax(axis=1) == engine.argmax(axis=1)).tolist())

    def agreement(self, max_abs: float) -> float | None:
        """Share of the rows; a margin that the error can close decides nothing. None: no row decides."""
        clear = [agree for agree, margin in zip(self._agree, self._margins, strict=True) if margin > 2 * max_abs]
        return sum(clear) / len(clear) if clear else None
