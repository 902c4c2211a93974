"""From an opened network to ONNX: the ways there are, one after the other, until one answers as the network does.

Measured on 31 saved TorchScript files of 16 networks: the TorchScript exporter is right on 21 at opset 17, the
conversion to a program of torch.export on 22, all ways together on 29. Some wrong files come out without a word, so
each is run before it is believed. Imports torch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from app.build.export.networks import Network, Program, Script, named_leaves, refuse_fatal, words
from app.build.export.plan import Plan
from app.build.export.proof import NotTheSame, Run, declare, prove
from app.build.export.shapes import random_inputs
from app.domain.errors import ExportFailed
from app.domain.tensors import TensorSpec

_LEGACY_OPSETS = (9, 20)  # of the exporter for TorchScript
_SECOND_OPSET = 20
_PROGRAM_OPSETS = (18, 23)  # of the exporter for programs
_FILE_BYTES_MAX = 2**31 - 1  # of one protobuf message

Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    model: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    how: str


@dataclass(frozen=True)
class _Way:
    name: str
    export: Callable[[Plan, list[str]], onnx.ModelProto]


def exported(network: Script | Program, plan: Plan, opset: int, opset_max: int, say: Say) -> Found:
    """The first way whose file answers as the network does, at every trial of the plan.

    Args:
        opset: tried first; `opset_max` is the newest that may come out.

    Raises:
        ExportFailed: none does; says why each failed.
        SourceFailed: the network fails on inputs that it took before.
    """
    runs = _runs(network, plan)
    reasons = []
    for way in _ways(network, opset, opset_max):
        say(f"trying {way.name}")
        try:
            return _attempt(way, plan, runs, opset_max, is_half=_is_half(network))
        except NotTheSame as error:
            reasons.append(f"{way.name}: {error}")
            say(reasons[-1])
    raise ExportFailed(
        f"The network could not be exported to ONNX (newest opset {opset_max}). {'; '.join(reasons)}.",
        hint=_advice(" ".join(reasons)),
    )


def _runs(network: Network, plan: Plan) -> list[Run]:
    """The network's answers to all trials, and to the first one twice: on other values."""
    runs = []
    for seed, shapes in enumerate((*plan.trials, plan.trials[0])):
        inputs = random_inputs(plan.inputs, shapes, seed)
        runs.append(Run(shapes, inputs, network.run(inputs)))
    again = network.run(runs[0].inputs)
    if not all(np.array_equal(value, again[name], equal_nan=True) for name, value in runs[0].answer.items()):
        raise ExportFailed(
            "The network answers the same inputs differently each time, so no engine can be compared with it.",
            hint="Save it after model.eval(); draw random numbers outside of the network.",
        )
    return runs


def _ways(network: Script | Program, opset: int, opset_max: int) -> Iterator[_Way]:
    if isinstance(network, Script):
        first = max(_LEGACY_OPSETS[0], min(opset, *_LEGACY_OPSETS[1:], opset_max))
        for number in dict.fromkeys((first, min(_SECOND_OPSET, max(opset_max, first)))):
            yield _Way(f"TorchScript exporter at opset {number}", _from_script(network, number))
    number = max(_PROGRAM_OPSETS[0], min(opset_max, max(opset, _PROGRAM_OPSETS[0]), _PROGRAM_OPSETS[1]))
    name = "conversion to a program, its" if isinstance(network, Script) else "program"
    yield _Way(f"{name} exporter at opset {number}", _from_program(network, number))


def _attempt(way: _Way, plan: Plan, runs: list[Run], opset_max: int, *, is_half: bool) -> Found:
    names = list(runs[0].answer)
    try:
        model = way.export(plan, names)
    except Exception as error:  # exporters raise whatever the operator at hand raises
        refuse_fatal(error)
        raise NotTheSame(words(error)) from error
    model = _lowered(model, opset_max)
    inputs, outputs = declare(model, plan, runs)
    if model.ByteSize() > _FILE_BYTES_MAX:
        raise NotTheSame("the ONNX file would be larger than 2 GiB")
    content = model.SerializeToString()
    prove(content, runs, is_half=is_half)
    return Found(content, inputs, outputs, _opset(model), way.name)


def _from_script(network: Script, opset: int) -> Callable[[Plan, list[str]], onnx.ModelProto]:
    def export(plan: Plan, outputs: list[str]) -> onnx.ModelProto:
        file = io.BytesIO()
        example = _arguments(network, plan)
        axes = plan.axis_names()
        rows = {name: {0: "batch"} for name in outputs} if plan.batched else {}
        torch.onnx.export(
            _flat(network, example),
            example,
            file,
            dynamo=False,
            opset_version=opset,
            input_names=list(network.inputs),
            output_names=outputs,
            dynamic_axes={**axes, **{name: named for name, named in rows.items() if name not in axes}},
        )
        return onnx.load_model_from_string(file.getvalue())

    return export


def _from_program(network: Script | Program, opset: int) -> Callable[[Plan, list[str]], onnx.ModelProto]:
    def export(plan: Plan, outputs: list[str]) -> onnx.ModelProto:
        if isinstance(network, Program):
            program = network.program
        else:
            from torch._export.converter import TS2EPConverter  # takes two seconds, and is seldom needed

            example = _arguments(network, plan)
            program = TS2EPConverter(_flat(network, example), example, {}).convert()
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=list(network.inputs),
            output_names=outputs,
            verbose=False,
        )
        model: onnx.ModelProto = made.model_proto
        return model

    return export


class _Flat(torch.nn.Module):  # type: ignore[misc]
    """A network that answers a tuple of tensors instead of dictionaries, lists and named fields."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        return tuple(tensor for _, tensor in named_leaves(self.network(*inputs)))


def _flat(network: Script, example: tuple[Any, ...]) -> Any:
    kinds = [str(value.type) for value in network.module.forward.schema.returns]
    if kinds == ["Tensor"]:
        return network.module
    with torch.no_grad():
        return torch.jit.trace(_Flat(network.module), example, check_trace=False)


def _arguments(network: Script, plan: Plan) -> tuple[Any, ...]:
    example = plan.example
    return tuple(torch.from_numpy(example[name]) for name in network.inputs)


def _lowered(model: onnx.ModelProto, opset_max: int) -> onnx.ModelProto:
    """The same at an opset that the backend reads."""
    if _opset(model) <= opset_max:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset_max)
    except Exception as error:  # the converter raises whatever its C++ side threw
        raise NotTheSame(f"opset {_opset(model)} cannot be converted to {opset_max}: {words(error)}") from error


def _opset(model: onnx.ModelProto) -> int:
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _is_half(network: Script | Program) -> bool:
    holder = network.module if isinstance(network, Script) else network.program
    return any(weight.dtype in (torch.float16, torch.bfloat16) for weight in holder.parameters())


def _advice(reasons: str) -> str:
    if ("nsupported" in reasons and "aten::" in reasons) or "not supported" in reasons:
        return (
            "Replace the operator that is named in the network's Python by others that ONNX has, or allow a newer"
            " opset, and upload it again."
        )
    return (
        "Export it where it was trained and upload the .onnx file: torch.onnx.export(model, (example,), 'model.onnx',"
        " dynamo=True)."
    )
