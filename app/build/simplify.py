"""Simplification of the graph by onnxsim: kept only when it is proven to change nothing.

onnxsim may crash or hang on a graph that is otherwise fine, so it runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from app.backends import registry
from app.backends.base import Progress
from app.build.compare import Comparison, refuse_other_names, refuse_outside
from app.build.graph import Source
from app.build.reference import Reference
from app.build.shapes import RunShapes
from app.domain.builds import Tolerance
from app.domain.errors import ServiceError, SourceFailed
from app.domain.tensors import Signature, Tensors

MODEL_BYTES_MAX = 2**30  # onnxsim holds about four times the model in memory
TIMEOUT_S = 300.0
_OTHER_ROWS = 3


def simplified(
    model: Path,
    out: Path,
    reference: Reference,
    source: Source,
    shapes: RunShapes,
    tolerance: Tolerance,
    progress: Progress,
) -> Path:
    """The file to build from: `out`, or the model itself with a warning that says why."""
    problem = "its weights are too large for one ONNX file" if source.is_split else _attempt(model, out)
    problem = problem or difference(out, reference, source, shapes, tolerance)
    if problem:
        progress.warn(f"The model was not simplified: {problem}. The build goes on with the model as uploaded.")
        return model
    progress.step(f"simplified: {_size(model)} → {_size(out)}, answers unchanged")
    return out


def difference(
    simple: Path,
    reference: Reference,
    source: Source,
    shapes: RunShapes,
    tolerance: Tolerance,
) -> str:
    """How the simplified model's answers differ from the source's; "" when they do not."""
    comparison = Comparison(source.outputs, classifier=False)
    samples = list(_samples(reference, shapes))
    try:
        with closing(registry.backend("onnxruntime").load(simple)) as engine, closing(engine.open_context()) as context:
            refuse_other_names(engine.signature, Signature(source.inputs, source.outputs))
            for inputs, expected in samples:
                comparison.add(expected, context.run(inputs), rows=1)
        refuse_outside(comparison.accuracy(reference.runtime), tolerance)
    except ServiceError as error:
        return f"onnxsim's result is not the same network ({error.detail.rstrip('.')})"
    return ""


def _samples(reference: Reference, shapes: RunShapes) -> Iterator[tuple[Tensors, Tensors]]:
    """Inputs and the source model's answers: at the base shapes, and at another batch length where it takes one."""
    for seed in range(2):
        yield reference.sample(shapes.base, seed)
    if any(shapes.batch_axes.values()) and shapes.admits(_OTHER_ROWS):
        with suppress(SourceFailed):  # verification tells it
            yield reference.sample(shapes.with_rows(_OTHER_ROWS), seed=2)


def _attempt(model: Path, out: Path) -> str:
    """What went wrong; "" when `out` was written."""
    size_bytes = model.stat().st_size
    if size_bytes > MODEL_BYTES_MAX:
        return f"it has {size_bytes / 2**20:.0f} MiB, the limit is {MODEL_BYTES_MAX / 2**20:.0f}"
    command = [sys.executable, "-m", "app.build.simplifier", str(model), str(out)]
    try:
        done = subprocess.run(command, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"onnxsim was still busy after {TIMEOUT_S:.0f} s"
    if done.returncode < 0:
        return f"onnxsim ended by signal {-done.returncode}"
    return "onnxsim failed" if done.returncode or not out.exists() else ""


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 2**10:,.0f} KiB"
