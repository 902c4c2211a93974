"""How an engine is built from an uploaded ONNX file: the steps, in order."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import onnx

from app.backends import registry
from app.backends.base import Backend
from app.backends.onnxruntime_models import limits
from app.build import graph
from app.build.graph import Source
from app.build.preprocessing import refuse_labels, resolved_preprocess
from app.build.reference import Reference, opened, probed_shapes
from app.build.report import Report
from app.build.shapes import RunShapes, requested_ranges
from app.build.simplify import simplified
from app.build.verify import Proof, Trial, is_random, tolerance_of
from app.build.workdir import BuildSpec, WorkDir
from app.domain.builds import BuildOptions, BuiltEngine
from app.domain.jobs import Stage
from app.domain.preprocess import Preprocess
from app.domain.tensors import ShapeRange, Signature, Tensor


@dataclass(frozen=True)
class _Plan:
    """What is decided before anything long starts."""

    source: Source
    ranges: Mapping[str, ShapeRange]
    shapes: RunShapes
    preprocess: Preprocess | None
    is_random: bool  # two runs on the same input differ, so there is nothing to compare with


def build(work: WorkDir, spec: BuildSpec, report: Report) -> BuiltEngine:
    """Build the engine of a work folder.

    Returns:
        All about the engine, whose file is then `work.engine`.

    Raises:
        BuildFailed: a step failed, with what was found and what to do.
    """
    started = time.monotonic()
    backend = registry.chosen(spec.backend)
    report.stage(Stage.INSPECT, "reading the model")
    source = _inspected(work, backend, report)
    with closing(opened(_reference_files(work), source.inputs)) as reference:
        plan = _planned(source, reference, spec.options, report)
        model = _simplified(work, plan, reference, spec.options, report)
        report.stage(Stage.COMPILE, f"compiling for {backend.facts().device}")
        backend.compile(model, spec.options, dict(plan.ranges), work.engine, report)
        report.stage(Stage.VERIFY, "comparing the engine with the model as uploaded")
        proof = _proof(work, plan, backend, reference, spec, report)
    return BuiltEngine(
        size_bytes=work.engine.stat().st_size,
        facts=backend.facts(),
        signature=Signature(source.inputs, proof.outputs, plan.ranges, proof.rows_max),
        preprocess=plan.preprocess,
        labels=spec.options.labels,
        accuracy=proof.accuracy,
        latency=proof.latency,
        built_in_s=round(time.monotonic() - started, 3),
        warnings=report.warnings,
    )


def _inspected(work: WorkDir, backend: Backend, report: Report) -> Source:
    model = graph.parsed(work.model)
    changes = graph.make_readable(model, limits())
    if changes:
        onnx.save_model(model, str(work.readable))
        report.step(f"made readable for the runtime: {', '.join(changes)}")
    backend.check(_readable(work))  # before the checker: it names every missing operator, the checker the first
    graph.check(work.model)
    source = graph.described_source(model)
    report.step(str(source))
    return source


def _reference_files(work: WorkDir) -> tuple[Path, ...]:
    """The upload as it is first; the readable copy where the runtime refuses that."""
    return (work.model, work.readable) if work.readable.exists() else (work.model,)


def _readable(work: WorkDir) -> Path:
    return work.readable if work.readable.exists() else work.model


def _planned(source: Source, reference: Reference, options: BuildOptions, report: Report) -> _Plan:
    """Shapes, recipe and labels: what is contradictory fails here, before anything long starts."""
    ranges = requested_ranges(source.inputs, options)
    shapes, answer = probed_shapes(source, ranges, reference)
    signature = Signature(source.inputs, source.outputs, ranges)
    preprocess = resolved_preprocess(signature, options.preprocess)
    refuse_labels(options.labels, signature, _classes(answer))
    if source.inputs and all(spec.shape and spec.shape[0] > 0 for spec in source.inputs):
        report.step(f"the batch is fixed at {shapes.rows} by the model: requests are never joined into one run")
    return _Plan(source, ranges, shapes, preprocess, is_random(reference, source, shapes))


def _classes(answer: Mapping[str, Tensor]) -> int:
    """Length of the last axis of the first output."""
    shape = next(iter(answer.values())).shape
    return shape[-1] if shape else 1


def _simplified(work: WorkDir, plan: _Plan, reference: Reference, options: BuildOptions, report: Report) -> Path:
    model = _readable(work)
    if not options.simplify or plan.is_random:
        reason = "the model draws random numbers" if plan.is_random else "as asked"
        report.stage(Stage.SIMPLIFY, f"skipped: {reason}")
        return model
    report.stage(Stage.SIMPLIFY, "simplifying the graph")
    tolerance = tolerance_of(plan.source, None)
    return simplified(model, work.simplified, reference, plan.source, plan.shapes, tolerance, report)


def _proof(
    work: WorkDir, plan: _Plan, backend: Backend, reference: Reference, spec: BuildSpec, report: Report
) -> Proof:
    tolerance = tolerance_of(plan.source, spec.options.tolerance)
    with closing(backend.load(work.engine)) as engine:
        trial = Trial(engine, reference, plan.source, plan.shapes, plan.ranges, report, is_random=plan.is_random)
        return trial.proof(tolerance, spec.batch_rows_max)
