"""The engines that a build can make, and with precision auto the one that is published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.backends.base import Backend
from app.build.verify import Proof
from app.domain.builds import Accuracy, BuildOptions, Candidate, Int8Method, Precision
from app.domain.errors import AccuracyLost, ServiceError

_NOISE = 1.05  # medians closer than this are equally fast


@dataclass(frozen=True)
class Kind:
    """What an engine is built as."""

    precision: Precision
    method: Int8Method | None = None  # None unless INT8

    def __str__(self) -> str:
        return self.precision.value + (f" by {self.method.value}" if self.method else "")

    @property
    def file(self) -> str:
        """What its files are called."""
        return str(self).replace(" by ", "-")


@dataclass(frozen=True)
class Made:
    """An engine within its tolerance."""

    kind: Kind
    file: Path
    proof: Proof
    built_in_s: float
    warnings: tuple[str, ...] = ()  # of this engine only


@dataclass(frozen=True)
class Refused:
    """What became of the others; what is None was never reached."""

    kind: Kind
    error: ServiceError
    proof: Proof | None
    size_bytes: int | None
    built_in_s: float | None


def kinds(backend: Backend, options: BuildOptions, *, is_quantised: bool) -> list[Kind]:
    """What the options ask for; with precision auto all that the backend can build, the most precise first.

    Args:
        is_quantised: the model carries Q/DQ nodes of its own, so INT8 is decided already.
    """
    methods = [options.int8_method] if options.int8_method else list(backend.int8_methods)
    if options.precision is not Precision.AUTO:
        return [Kind(options.precision, methods[0] if options.precision is Precision.INT8 else None)]
    found = [Kind(precision) for precision in (Precision.FP32, Precision.FP16) if precision in backend.precisions]
    if Precision.INT8 in backend.precisions and not is_quantised:
        found += [Kind(Precision.INT8, method) for method in methods]
    return found


def fastest(made: Sequence[Made]) -> Made:
    """The one of least median latency; of those as fast but for noise, the first."""
    best_ms = min(one.proof.latency.p50_ms for one in made)
    return next(one for one in made if one.proof.latency.p50_ms <= best_ms * _NOISE)


def candidate(attempt: Made | Refused) -> Candidate:
    """The attempt as it is reported."""
    proof = attempt.proof
    is_made = isinstance(attempt, Made)
    return Candidate(
        precision=attempt.kind.precision,
        int8_method=attempt.kind.method,
        accepted=is_made,
        reason=attempt.error.detail if isinstance(attempt, Refused) else "",
        accuracy=proof.accuracy if proof else None,
        latency=proof.latency if proof else None,
        size_bytes=attempt.file.stat().st_size if isinstance(attempt, Made) else attempt.size_bytes,
        built_in_s=attempt.built_in_s,
    )


def none_accepted(refused: Sequence[Refused]) -> ServiceError:
    """Why a build with precision auto fails: the reason of each, or the one that stopped all before they were run."""
    if all(one.proof is None for one in refused):
        return refused[0].error
    reasons = " ".join(f"{one.kind}: {one.error.detail}" for one in refused)
    return AccuracyLost(
        f"No engine stays within its tolerance. {reasons}",
        hint="Build with simplify=false, or allow more with the option tolerance if the difference does not matter.",
    )


def accuracy_text(accuracy: Accuracy) -> str:
    """In few words, as in `SQNR 36.1 dB, top-1 agreement 100.0%, 98.3% of 60 labels right (source 98.3%)`."""
    parts = []
    if accuracy.outputs:
        parts.append(f"SQNR {worst_db(accuracy):.1f} dB")
    if accuracy.top1_agreement is not None:
        parts.append(f"top-1 agreement {accuracy.top1_agreement:.1%}")
    if accuracy.labelled is not None:
        right = accuracy.labelled
        parts.append(f"{right.engine:.1%} of {right.samples} labels right (source {right.source:.1%})")
    return ", ".join(parts) or "nothing to compare"


def worst_db(accuracy: Accuracy) -> float:
    return min(output.sqnr_db for output in accuracy.outputs)
