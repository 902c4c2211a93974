"""Where the engines of one build are made and proven, each in the same way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from app.backends import registry
from app.backends.base import Backend, Progress, Samples
from app.build.calibration import Calibration
from app.build.candidates import Kind, Made, Refused, accuracy_text, candidate, fastest, none_accepted, worst_db
from app.build.cast import cast_to_half
from app.build.plan import Plan
from app.build.quantise import Quantiser
from app.build.quantise_layers import worst_layers
from app.build.quantise_ranges import rows_of_a_run
from app.build.reference import Reference
from app.build.report import Report
from app.build.tolerances import tolerance_of
from app.build.verify import Proof, Trial
from app.build.workdir import BuildSpec, WorkDir
from app.domain.builds import INT8_DOUBTFUL_DB, Candidate, Int8Method, Placement, Precision, Tolerance
from app.domain.errors import AccuracyLost, CastFailed, ModelTooLarge, ServiceError
from app.domain.jobs import Stage

_TOLERATE = "allow more with the option tolerance if the difference does not matter to you."
_HINTS = {
    Precision.FP32: f"Build with simplify=false, or {_TOLERATE}",
    Precision.FP16: f"Build with precision=fp32, or {_TOLERATE}",
    Precision.INT8: "Calibrate with more samples like those seen in use, try int8_ranging=entropy or percentile, or"
    f" build with precision=fp16 (auto compares them); or {_TOLERATE}",
}


@dataclass(frozen=True)
class Workshop:
    """Everything that the engines are made from."""

    work: WorkDir
    spec: BuildSpec
    backend: Backend
    model: Path  # the graph as the backend could compile it in float32
    plan: Plan
    reference: Reference
    calibration: Calibration
    report: Report

    def one(self, kind: Kind) -> Made:
        """Make and prove one engine.

        Raises:
            BuildFailed: a step failed; AccuracyLost: the engine is outside its tolerance. Its file is kept.
        """
        attempt = self._attempt(kind, self.report)
        if isinstance(attempt, Refused):
            raise attempt.error
        accuracy = attempt.proof.accuracy
        self.report.step(f"within its tolerance on {accuracy.samples} {accuracy.inputs} samples: {_told(attempt)}")
        return attempt

    def best(self, wanted: Sequence[Kind]) -> tuple[Made, tuple[Candidate, ...]]:
        """Make all of them, and choose the fastest that stays within its tolerance.

        Raises:
            BuildFailed: none does; it says why.
        """
        attempts = [self._compared(kind) for kind in wanted]
        made = [attempt for attempt in attempts if isinstance(attempt, Made)]
        if not made:
            raise none_accepted([attempt for attempt in attempts if isinstance(attempt, Refused)])
        chosen = fastest(made)
        for text in chosen.warnings:
            self.report.warn(text)
        self.report.step(f"{chosen.kind} is published: the fastest within its tolerance")
        return chosen, tuple(candidate(attempt) for attempt in attempts)

    def _compared(self, kind: Kind) -> Made | Refused:
        beside = _Beside(self.report, kind)
        attempt = self._attempt(kind, beside)
        if isinstance(attempt, Refused):
            self.report.step(f"{kind} refused: {attempt.error.detail}")
            return attempt
        self.report.step(f"{kind} accepted: {_told(attempt)}")
        return replace(attempt, warnings=tuple(beside.warnings))

    def _attempt(self, kind: Kind, progress: Progress) -> Made | Refused:
        started, built_in_s, proof = time.monotonic(), None, None
        engine = self._file(kind, ".bin")
        try:
            self._compile(kind, self._graph(kind, progress), engine, progress)
            built_in_s = round(time.monotonic() - started, 3)
            proof = self._proof(kind, engine, progress)
            if proof.problems:
                raise self._lost(kind, proof.problems)
        except ServiceError as error:
            return Refused(kind, error, proof, engine.stat().st_size if built_in_s else None, built_in_s)
        return Made(kind, engine, proof, built_in_s)

    def _file(self, kind: Kind, suffix: str) -> Path:
        self.work.candidates.mkdir(exist_ok=True)
        return self.work.candidates / f"{kind.file}{suffix}"

    # --- the graph ---------------------------------------------------------------------------------------------------

    def _graph(self, kind: Kind, progress: Progress) -> Path:
        """What the backend compiles: cast or quantised where it wants that in the graph."""
        out, source = self._file(kind, ".onnx"), self.plan.source
        is_cast = kind.precision is Precision.FP16 and self.backend.fp16_in_graph and not source.is_half
        is_quantised = kind.method is Int8Method.QDQ and not source.is_quantised
        if source.is_split and (is_cast or is_quantised):
            raise ModelTooLarge(
                f"The model's weights pass 2 GiB, and {kind} for {self.backend.name} needs a graph that holds them.",
                hint="Build with precision=fp32, or make the model smaller where it was trained.",
            )
        if is_cast:
            _halve(self.model, out, progress)
            return out
        if is_quantised:
            self.report.stage(Stage.QUANTISE, "quantising the graph")
            return self._quantised(kind, out, progress)
        return self.model

    def _quantised(self, kind: Kind, out: Path, progress: Progress) -> Path:
        ranging = self.spec.options.int8_ranging
        quantiser = Quantiser(self._samples(), self.plan.shapes, ranging, self._cache(), progress)
        quantiser.quantise(self.model, out, self.backend.placement)
        if self.backend.placement is Placement.ONNXRUNTIME:  # soon proven on this very runtime
            return out
        made = self._halved(kind, out, progress)
        with closing(registry.backend("onnxruntime").load(made)) as graph:
            trial = Trial(graph, self.reference, self.plan, kind.precision, progress)
            accuracy, problems = trial.measured(self._tolerance(kind))
        if problems:
            raise self._lost(kind, ("The quantised graph, before it was compiled:", *problems))
        progress.step(f"the quantised graph on ONNX Runtime: {accuracy_text(accuracy)}")
        return made

    def _halved(self, kind: Kind, quantised: Path, progress: Progress) -> Path:
        """What is not integer in float16, where only the graph can say so; elsewhere a flag does."""
        if not self.backend.fp16_in_graph or self.plan.source.is_half:
            return quantised
        out = self._file(kind, ".half.onnx")
        try:
            _halve(quantised, out, progress)
        except CastFailed as error:
            progress.warn(f"The layers that are not quantised stay in float32. {error.detail}")
            return quantised
        return out

    def _samples(self) -> Samples:
        if self.calibration.samples is None:
            assert self.calibration.problem is not None
            raise self.calibration.problem
        return self.calibration.samples

    # --- the engine --------------------------------------------------------------------------------------------------

    def _compile(self, kind: Kind, graph: Path, engine: Path, progress: Progress) -> None:
        calibrates = kind.method is Int8Method.CALIBRATOR and not self.plan.source.is_quantised
        samples = self._samples() if calibrates else None
        self.report.stage(Stage.COMPILE, f"compiling {kind} for {self.backend.facts().device}")
        options = replace(self.spec.options, precision=kind.precision, int8_method=kind.method)
        cache = self._cache()
        cache.mkdir(parents=True, exist_ok=True)
        ranges = dict(self.plan.ranges)
        self.backend.compile(
            *(graph, options, ranges, engine, progress),
            calibration=samples,
            cache=cache,
            rows_max=self.spec.batch_rows_max,
        )

    def _cache(self) -> Path:
        return Path(self.spec.cache) if self.spec.cache else self.work.cache

    def _proof(self, kind: Kind, engine: Path, progress: Progress) -> Proof:
        self.report.stage(Stage.VERIFY, "comparing the engine with the model as uploaded")
        with closing(self.backend.load(engine)) as loaded:
            trial = Trial(loaded, self.reference, self.plan, kind.precision, progress)
            proof = trial.proof(self._tolerance(kind), self.spec.batch_rows_max)
        is_doubtful = proof.accuracy.outputs and worst_db(proof.accuracy) < INT8_DOUBTFUL_DB
        if kind.precision is Precision.INT8 and is_doubtful and not proof.problems:
            progress.warn(
                f"INT8 keeps SQNR {worst_db(proof.accuracy):.1f} dB; {INT8_DOUBTFUL_DB:g} dB or more is usual."
            )
        return proof

    def _tolerance(self, kind: Kind) -> Tolerance:
        options = self.spec.options
        return tolerance_of(self.plan.source, options.tolerance, kind.precision, tf32=options.tf32)

    def _lost(self, kind: Kind, problems: Sequence[str]) -> AccuracyLost:
        return AccuracyLost(" ".join((*problems, *self._worst(kind))), hint=_HINTS[kind.precision])

    def _worst(self, kind: Kind) -> tuple[str, ...]:
        """The worst layers, in a sentence, where the quantised graph can be looked into."""
        quantised = self._file(kind, ".onnx")
        plain = quantised.with_suffix(".float.onnx")
        if kind.method is not Int8Method.QDQ or not plain.exists():
            return ()
        samples = self.plan.held_back.samples if self.plan.held_back else self._samples()
        found = worst_layers(plain, quantised, samples, rows_of_a_run(self.plan.shapes, 1))
        return (f"Worst layers: {', '.join(found)}.",) if found else ()


def _halve(model: Path, out: Path, progress: Progress) -> None:
    cut = cast_to_half(model, out)
    if cut:
        progress.warn(f"{len(cut)} weights were cut to what a float16 holds, {cut[0]!r} first.")


class _Beside(Progress):
    """Tells about one engine of several: its warnings count only when it is published."""

    def __init__(self, report: Report, kind: Kind) -> None:
        self._report = report
        self._kind = kind
        self.warnings: list[str] = []

    def step(self, text: str) -> None:
        self._report.step(f"{self._kind}: {text}")

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self._report.step(f"{self._kind}: {text}")


def _told(made: Made) -> str:
    latency = made.proof.latency
    return f"{accuracy_text(made.proof.accuracy)}, p50 {latency.p50_ms:.3f} ms"
