"""Whether an exported file answers as the network does, and what it may declare. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnxruntime as ort

from app.build.compare import Comparison, refuse_outside
from app.build.export.plan import BATCH, Plan
from app.build.export.shapes import Shapes
from app.domain.builds import Tolerance
from app.domain.errors import AccuracyLost
from app.domain.tensors import ANY, DType, Shape, Tensors, TensorSpec

_HALF_TOLERANCE = Tolerance(sqnr_db=40, cosine=0.9999, max_rel=1e-2)
_FATAL = 4  # log severity


@dataclass(frozen=True)
class Run:
    """The network's own answer to one trial."""

    shapes: Shapes
    inputs: Tensors
    answer: Tensors


class NotTheSame(Exception):
    """The exported file is not the network; the message says how it shows."""


def prove(model: bytes, runs: list[Run], *, is_half: bool) -> None:
    """Run the file on every trial and compare.

    Raises:
        NotTheSame: it does not load, fails, or answers otherwise.
    """
    try:
        session = _session(model)
        for run in runs:
            _compare(session, run, is_half)
    except NotTheSame:
        raise
    except AccuracyLost as error:
        raise NotTheSame(error.detail) from error
    except Exception as error:  # the runtime's exceptions have no base of their own
        raise NotTheSame(f"ONNX Runtime refuses it: {' '.join(str(error).split())[:300]}") from error


def output_specs(runs: list[Run]) -> tuple[TensorSpec, ...]:
    """The outputs as the runs bear out: an axis whose length was seen to change may have any."""
    return tuple(
        TensorSpec(name, DType(first.dtype.name), tuple(_seen_length(lengths) for lengths in _lengths(name, runs)))
        for name, first in runs[0].answer.items()
    )


def declare(
    model: onnx.ModelProto, plan: Plan, runs: list[Run]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Write the shapes of inputs and outputs into the file, as the plan and the runs have them.

    Returns:
        The inputs and the outputs as the file then declares them.

    Raises:
        NotTheSame: the file's have other names.
    """
    names = plan.axis_names()
    inputs = tuple(
        TensorSpec(
            spec.name,
            spec.dtype,
            tuple(ANY if axis in names.get(spec.name, {}) else n for axis, n in enumerate(spec.shape)),
        )
        for spec in plan.inputs
    )
    outputs = output_specs(runs)
    _refuse_other_names("inputs", model.graph.input, inputs)
    _refuse_other_names("outputs", model.graph.output, outputs)
    for value, spec in zip(model.graph.input, inputs, strict=True):
        _write_shape(value, spec.shape, names.get(spec.name, {}))
    for value, spec in zip(model.graph.output, outputs, strict=True):
        _write_shape(value, spec.shape, _output_axis_names(spec, runs, plan))
    del model.graph.value_info[:]
    return inputs, outputs


def _session(model: bytes) -> ort.InferenceSession:
    setup = ort.SessionOptions()
    setup.log_severity_level = _FATAL
    setup.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, setup, providers=["CPUExecutionProvider"])


def _compare(session: ort.InferenceSession, run: Run, is_half: bool) -> None:
    names = [output.name for output in session.get_outputs()]
    given = {value.name: run.inputs[value.name] for value in session.get_inputs()}
    answer = dict(zip(names, session.run(names, given), strict=True))
    specs = tuple(TensorSpec(name, DType(value.dtype.name), value.shape) for name, value in run.answer.items())
    comparison = Comparison(specs, classifier=False)
    comparison.add(run.answer, answer, rows=1)
    refuse_outside(comparison.accuracy("PyTorch"), _HALF_TOLERANCE if is_half else Tolerance())


def _lengths(name: str, runs: list[Run]) -> list[list[int]]:
    """By axis: the length in each run.

    Raises:
        NotTheSame: the number of axes itself changes.
    """
    shapes = [run.answer[name].shape for run in runs]
    if len({len(shape) for shape in shapes}) != 1:
        raise NotTheSame(f"the output {name!r} changes its number of axes")
    return [list(lengths) for lengths in zip(*shapes, strict=True)]


def _seen_length(lengths: list[int]) -> int:
    return lengths[0] if len(set(lengths)) == 1 else ANY


def _output_axis_names(spec: TensorSpec, runs: list[Run], plan: Plan) -> dict[int, str]:
    rows = [plan.rows(run.shapes) for run in runs]
    return {
        axis: BATCH if lengths == rows else f"{spec.name}_{axis}"
        for axis, lengths in enumerate(_lengths(spec.name, runs))
    }


def _refuse_other_names(role: str, values: Sequence[onnx.ValueInfoProto], specs: tuple[TensorSpec, ...]) -> None:
    found, wanted = [value.name for value in values], [spec.name for spec in specs]
    if found != wanted:
        raise NotTheSame(f"its {role} are {', '.join(found) or 'none'}, the network's {', '.join(wanted)}")


def _write_shape(value: onnx.ValueInfoProto, shape: Shape, names: Mapping[int, str]) -> None:
    """Lengths that are fixed as numbers; open ones keep the name that the exporter gave, unless they are the rows."""
    dims = value.type.tensor_type.shape.dim
    kept = [dim.dim_param for dim in dims] if len(dims) == len(shape) else [""] * len(shape)
    value.type.tensor_type.ClearField("shape")
    value.type.tensor_type.shape.SetInParent()
    for axis, length in enumerate(shape):
        dim = value.type.tensor_type.shape.dim.add()
        if length != ANY:
            dim.dim_value = length
        else:
            dim.dim_param = BATCH if names.get(axis) == BATCH else kept[axis] or names.get(axis, f"{value.name}_{axis}")
