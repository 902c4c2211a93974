"""How an engine is built from an uploaded network: the steps, in order."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from app.backends import registry
from app.backends.base import Backend
from app.backends.memory import peak_bytes
from app.backends.onnxruntime_models import limits
from app.build import graph
from app.build.arrival import arrived, uploaded_reference
from app.build.batch import fixed_rows, make_dynamic, prove
from app.build.calibration import Calibration, no_calibration, read_calibration
from app.build.candidates import Made, kinds
from app.build.constants import folded_constants
from app.build.fold import FromPixels, fold, folded_range, folded_recipe
from app.build.graph import Source
from app.build.plan import Plan
from app.build.preprocessing import leaves_size_open, refuse_labels, resolved_preprocess
from app.build.reference import Reference, RowByRow, probed_shapes
from app.build.report import Report
from app.build.sample_labels import Classes
from app.build.shapes import RunShapes, requested_ranges, run_shapes
from app.build.simplify import simplified
from app.build.tolerances import tolerance_of
from app.build.verify import is_random
from app.build.workdir import BuildSpec, WorkDir
from app.build.workshop import Workshop
from app.domain.builds import BuildOptions, BuiltEngine, Candidate, Precision
from app.domain.jobs import Stage
from app.domain.preprocess import SIZE_HINT, Preprocess
from app.domain.tensors import Signature, Tensor


@dataclass(frozen=True)
class _Step:
    """The model after a step: its file, what it is, and the upload asked in its way."""

    model: Path
    source: Source
    reference: Reference


def build(work: WorkDir, spec: BuildSpec, report: Report) -> BuiltEngine:
    """Build the engine of a work folder.

    Returns:
        All about the engine, whose file is then `work.engine`.

    Raises:
        BuildFailed: a step failed, with what was found and what to do.
    """
    started = time.monotonic()
    backend = registry.chosen(spec.backend)
    exported = arrived(work, spec, backend.opset_max, report)
    report.stage(Stage.INSPECT, "reading the model")
    source = _inspected(work, backend, report)
    with closing(uploaded_reference(work, spec, exported, source)) as uploaded:
        step = _with_dynamic_batch(work, _Step(_readable(work), source, uploaded), spec.options, report)
        step, plan, classes = _planned(work, step, spec.options, report)
        calibration = _calibration(work, plan, classes, spec, report)
        plan = replace(plan, held_back=calibration.held_back, shapes=_limited(plan.shapes, spec))
        model = _simplified(work, step, plan, spec.options, report)
        shop = Workshop(work, spec, backend, model, plan, step.reference, calibration, report)
        made, candidates = _made(shop, spec.options)
        made.file.replace(work.engine)
    return BuiltEngine(
        size_bytes=work.engine.stat().st_size,
        facts=backend.facts(),
        signature=Signature(plan.source.inputs, made.proof.outputs, plan.ranges, made.proof.rows_max),
        preprocess=plan.preprocess,
        labels=spec.options.labels,
        accuracy=made.proof.accuracy,
        latency=made.proof.latency,
        built_in_s=round(time.monotonic() - started, 3),
        warnings=report.warnings,
        precision=made.kind.precision,
        int8_method=made.kind.method,
        candidates=candidates,
        device_bytes=made.proof.device_bytes,
        peak_bytes=peak_bytes(),
    )


def _inspected(work: WorkDir, backend: Backend, report: Report) -> Source:
    model = graph.parsed(work.network, may_be_split=work.network == work.unpacked)
    changes = graph.make_readable(model, limits())
    if changes:
        onnx.save_model(model, str(work.readable))
        report.step(f"made readable for the runtime: {', '.join(changes)}")
    backend.check(_readable(work))  # before the checker: it names every missing operator, the checker the first
    graph.check(work.network)
    source = graph.described_source(model)
    report.step(str(source))
    return source


def _readable(work: WorkDir) -> Path:
    return work.readable if work.readable.exists() else work.network


def _with_dynamic_batch(work: WorkDir, step: _Step, options: BuildOptions, report: Report) -> _Step:
    rows = fixed_rows(step.source) if options.dynamic_batch else 0
    if not rows:
        return step
    report.step(f"making the batch of {rows} dynamic")
    model = folded_constants(step.model, work.dynamic)
    rewritten = make_dynamic(model, rows)
    onnx.save_model(model, str(work.dynamic))
    source = graph.described_source(model)
    reference = step.reference.adapted(lambda runner: RowByRow(runner, rows), source.inputs)
    shapes, _ = probed_shapes(source, {}, reference)
    prove(work.dynamic, source, reference, shapes.base)
    report.step(f"the batch is dynamic: {rewritten} shapes inside rewritten, proven row by row")
    return _Step(work.dynamic, source, reference)


def _planned(work: WorkDir, step: _Step, options: BuildOptions, report: Report) -> tuple[_Step, Plan, Classes]:
    """Shapes, recipe and labels: what is contradictory fails here, before anything long starts."""
    source, reference = step.source, step.reference
    ranges = requested_ranges(source.inputs, options)
    shapes, answer = probed_shapes(source, ranges, reference)
    signature = Signature(source.inputs, source.outputs, ranges)
    preprocess = resolved_preprocess(signature, options.preprocess)
    if options.preprocess is None:
        _warn_of_recipe(signature, preprocess, report)
    refuse_labels(options.labels, signature, _classes(answer))
    if source.inputs and all(spec.shape and spec.shape[0] > 0 for spec in source.inputs):
        report.step(f"the batch is fixed at {shapes.rows} by the model: requests are never joined into one run")
    classes = Classes(_classes(answer) if signature.is_classifier else 0, options.labels)
    plan = Plan(source, ranges, shapes, preprocess, is_random(reference, source, shapes))
    if not options.fold_preprocess:
        return step, plan, classes
    return *_folded(work, step, plan, report), classes


def _warn_of_recipe(signature: Signature, preprocess: Preprocess | None, report: Report) -> None:
    """Say what nobody asked for: a recipe that is not the one of the training ruins accuracy, and nothing fails."""
    if preprocess is None and leaves_size_open(signature):
        report.warn(f"The engine takes tensors, not images: the model leaves their size open. Give it: {SIZE_HINT}.")
    if preprocess is not None and preprocess.channels == 3 and preprocess.dtype.is_float:
        report.warn(
            "Images are stretched and scaled to 0..1, as no recipe was given. If the network was trained so, say"
            " preprocess=unit; torchvision's classifiers want preprocess=imagenet, Ultralytics' detectors want"
            " preprocess=yolo."
        )


def _folded(work: WorkDir, step: _Step, plan: Plan, report: Report) -> tuple[_Step, Plan]:
    """The recipe's arithmetic moved into the graph, and all that was planned about its input with it."""
    left = folded_recipe(plan.preprocess)
    recipe = plan.preprocess
    assert recipe is not None  # folded_recipe has refused that
    model = onnx.load_model(str(step.model), load_external_data=False)
    fold(model, recipe)
    onnx.save_model(model, str(work.folded))
    source = graph.described_source(model)
    reference = step.reference.adapted(lambda runner: FromPixels(runner, recipe), source.inputs)
    ranges = {name: folded_range(limits, recipe.layout) for name, limits in plan.ranges.items()}
    base = {left.input: (plan.shapes.base[left.input][0], *left.row_shape)}
    report.step(f"preprocessing folded into the graph: the engine takes uint8 images, {left.width}×{left.height}")
    folded = replace(plan, source=source, ranges=ranges, shapes=run_shapes(source, ranges, base), preprocess=left)
    return _Step(work.folded, source, reference), folded


def _classes(answer: Mapping[str, Tensor]) -> int:
    """Length of the last axis of the first output."""
    shape = next(iter(answer.values())).shape
    return shape[-1] if shape else 1


def _calibration(work: WorkDir, plan: Plan, classes: Classes, spec: BuildSpec, report: Report) -> Calibration:
    if not work.calibration.exists():
        return no_calibration()
    asked = spec.options.precision
    return read_calibration(work.calibration, plan, asked, classes, spec.min_calibration_samples, report)


def _limited(shapes: RunShapes, spec: BuildSpec) -> RunShapes:
    """The same, with no more rows than an engine has to take whose request sets no largest shape."""
    return replace(shapes, rows_max=spec.batch_rows_max) if shapes.rows_max is None else shapes


def _simplified(work: WorkDir, step: _Step, plan: Plan, options: BuildOptions, report: Report) -> Path:
    if not options.simplify or plan.is_random:
        reason = "the model draws random numbers" if plan.is_random else "as asked"
        report.stage(Stage.SIMPLIFY, f"skipped: {reason}")
        return step.model
    report.stage(Stage.SIMPLIFY, "simplifying the graph")
    tolerance = tolerance_of(plan.source)
    return simplified(step.model, work.simplified, step.reference, plan.source, plan.shapes, tolerance, report)


def _made(shop: Workshop, options: BuildOptions) -> tuple[Made, tuple[Candidate, ...]]:
    wanted = kinds(shop.backend, options, is_quantised=shop.plan.source.is_quantised)
    if options.precision is Precision.AUTO:
        return shop.best(wanted)
    return shop.one(wanted[0]), ()
