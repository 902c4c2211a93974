"""The uploaded ONNX file as a graph: read it, refuse what cannot be built, describe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from app.backends.onnxruntime_models import (
    OLDEST_OPSET,
    Limits,
    nodes_of,
    opset_of,
    refuse_newer,
    split_tensors,
    tensors_of,
)
from app.domain.errors import DTypeUnsupported, ExternalDataMissing, ModelInvalid, OpsetUnsupported
from app.domain.tensors import ANY, DType, TensorSpec, described

FILE_BYTES_MAX = 2**31 - 1  # of one protobuf message

_DTYPES = {int(onnx.helper.np_dtype_to_tensor_dtype(dtype.numpy)): dtype for dtype in DType}
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_QUANTISED = {"QuantizeLinear", "DynamicQuantizeLinear"}
_HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
_OPSET_AFTER_CONVERSION = 13
_LEGACY_IR = 3  # up to here every initializer had to be listed as an input as well


@dataclass(frozen=True)
class Source:
    """What the proto tells about the uploaded model."""

    inputs: tuple[TensorSpec, ...]  # without those that are initializers
    outputs: tuple[TensorSpec, ...]
    symbols: Mapping[str, tuple[str, ...]]  # by input: the name of each axis's length, "" where it has none
    opset: int
    nodes: int
    parameters: int
    is_random: bool  # two runs on the same input may differ
    is_half: bool  # computes in 16-bit floats somewhere
    is_quantised: bool  # rounds to integers somewhere
    is_split: bool = False  # some weights are in files beside it: all together are too large for one

    def __str__(self) -> str:
        return (
            f"opset {self.opset}, {self.nodes} nodes, {_count_text(self.parameters)} parameters;"
            f" inputs: {described(self.inputs) or 'none'}; outputs: {described(self.outputs)}"
        )


def parsed(path: Path, *, may_be_split: bool = False) -> onnx.ModelProto:
    """The file as a model, its weights with it.

    Args:
        may_be_split: weights in other files are known to be safe; they are left there.

    Raises:
        ModelInvalid: it is not ONNX, damaged, or has no output.
        ExternalDataMissing: some weights are in other files; where they are said to be is never looked at.
    """
    size_bytes = path.stat().st_size
    if size_bytes > FILE_BYTES_MAX:
        raise ModelInvalid(
            f"The file has {size_bytes / 2**30:.1f} GiB; one ONNX file holds at most 2 GiB.",
            hint="Make the model smaller, for example by storing its weights as float16.",
        )
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelInvalid(
            "The file cannot be read as ONNX: it is damaged, incomplete, or of another kind.",
            hint="Upload the .onnx file as it was exported; compare its size with the original's.",
        ) from error
    refuse_damaged_names(model)
    if not may_be_split:
        _refuse_external_data(model)
    if not model.graph.output:
        raise ModelInvalid("The model has no outputs.", hint="Export the network again.")
    return model


def refuse_damaged_names(model: onnx.ModelProto) -> None:
    """Refuse names that are no text, which protobuf hands on as bytes.

    Raises:
        ModelInvalid: there is one.
    """
    values = (*model.graph.input, *model.graph.output)
    names = chain(
        (named.name for named in (*values, *model.graph.initializer)),
        (dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim),
        (name for node in nodes_of(model) for name in (node.op_type, node.domain, *node.input, *node.output)),
    )
    damaged = next((name for name in names if not isinstance(name, str)), None)
    if damaged is not None:
        raise ModelInvalid(
            f"The file is damaged: a name in it, {damaged[:80]!r}, is not UTF-8.",
            hint="Upload the .onnx file as it was exported; compare its size with the original's.",
        )


def check(path: Path) -> None:
    """Put the file through ONNX's own checker, with shape inference.

    Raises:
        ModelInvalid: with the first line of what the checker said.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelInvalid(
            f"ONNX's checker refused the model: {line[:300]}", hint="Export the network again with another version."
        ) from error


def make_readable(model: onnx.ModelProto, newest: Limits) -> list[str]:
    """Change the model, without changing what it computes, so that the runtime reads it.

    Returns:
        What was changed, a line each; empty when nothing had to be.

    Raises:
        OpsetUnsupported: no such change is known.
    """
    changes = []
    if 0 < opset_of(model) < OLDEST_OPSET:
        changes.append(f"opset {opset_of(model)} → {_OPSET_AFTER_CONVERSION}")
        _convert(model)
    elif opset_of(model) > newest.opset and _means_the_same(model, newest.opset):
        changes.append(f"opset {opset_of(model)} → {newest.opset}")
        _stamp(model, newest.opset)
    if newest.ir < model.ir_version <= onnx.IR_VERSION:
        changes.append(f"IR version {model.ir_version} → {newest.ir}")
        model.ir_version = newest.ir
    refuse_newer(model, newest)
    return changes


def described_source(model: onnx.ModelProto) -> Source:
    """What the build has to know of the model.

    Raises:
        DTypeUnsupported: an input or output is not a tensor of a type that engines carry.
        ModelInvalid: an input or output has no shape.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    initializers |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    values = [value for value in model.graph.input if value.name not in initializers]
    operators = {node.op_type for node in nodes_of(model)}
    return Source(
        inputs=tuple(_spec(value, "input") for value in values),
        outputs=tuple(_spec(value, "output") for value in model.graph.output),
        symbols={value.name: tuple(dim.dim_param for dim in value.type.tensor_type.shape.dim) for value in values},
        opset=opset_of(model),
        nodes=sum(1 for _ in nodes_of(model)),
        parameters=sum(prod(tensor.dims) for tensor in model.graph.initializer),
        is_random=bool(operators & _RANDOM),
        is_half=_is_half(model),
        is_quantised=bool(operators & _QUANTISED) or any("Integer" in operator for operator in operators),
        is_split=bool(split_tensors(model)),
    )


def _refuse_external_data(model: onnx.ModelProto) -> None:
    names = [tensor.name for tensor in split_tensors(model)]
    if names:
        raise ExternalDataMissing(
            f"{len(names)} of the model's tensors, {names[0][:80]!r} first, are stored in other files.",
            hint="Upload a zip of all of them: zip -0 model.zip model.onnx model.onnx.data. Or save the model whole:"
            " onnx.save(onnx.load('model.onnx'), 'whole.onnx', save_as_external_data=False).",
        )


def _convert(model: onnx.ModelProto) -> None:
    opset = opset_of(model)
    try:
        model.CopyFrom(onnx.version_converter.convert_version(model, _OPSET_AFTER_CONVERSION))
    except Exception as error:  # the converter raises whatever its C++ side threw
        raise OpsetUnsupported(
            f"The model has opset {opset}, older than {OLDEST_OPSET}, and cannot be converted:"
            f" {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}.",
            hint=f"Export the network again with opset {_OPSET_AFTER_CONVERSION} or newer.",
        ) from error


def _means_the_same(model: onnx.ModelProto, opset: int) -> bool:
    """Whether no operator of the model changed between the given opset and the model's."""
    ours = [node.op_type for node in nodes_of(model) if node.domain in ("", "ai.onnx")]
    newest = min(opset_of(model), onnx.defs.onnx_opset_version())
    try:
        since = [onnx.defs.get_schema(name, newest).since_version for name in ours]
    except onnx.defs.SchemaError:
        return False
    return opset_of(model) == newest and all(version <= opset for version in since)


def _stamp(model: onnx.ModelProto, opset: int) -> None:
    for entry in (*model.opset_import, *(entry for function in model.functions for entry in function.opset_import)):
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset


def _spec(value: onnx.ValueInfoProto, role: str) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    tensor = value.type.tensor_type
    if kind != "tensor_type" or tensor.elem_type not in _DTYPES:
        found = kind.removesuffix("_type") if kind and kind != "tensor_type" else _dtype_name(tensor.elem_type)
        raise DTypeUnsupported(
            f"The {role} {value.name!r} is of type {found}; engines carry tensors of"
            f" {', '.join(dtype.value for dtype in DType)}.",
            hint=f"Cast it inside the network, or leave the {role} out, and export again.",
        )
    if not tensor.HasField("shape"):  # not a scalar: nothing at all is said
        raise ModelInvalid(
            f"The {role} {value.name!r} has no shape, not even a number of axes.",
            hint="Declare it before uploading: onnx.shape_inference.infer_shapes finds those of outputs.",
        )
    return TensorSpec(value.name, _DTYPES[tensor.elem_type], tuple(_length(dim) for dim in tensor.shape.dim))


def _length(dim: onnx.TensorShapeProto.Dimension) -> int:
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else ANY


def _dtype_name(elem_type: int) -> str:
    return str(TensorProto.DataType.Name(elem_type)).lower() if elem_type in TensorProto.DataType.values() else "none"


def _is_half(model: onnx.ModelProto) -> bool:
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    types = {value.type.tensor_type.elem_type for value in values} | {tensor.data_type for tensor in tensors_of(model)}
    casts = {
        attribute.i
        for node in nodes_of(model)
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    return bool((types | casts) & _HALVES)


def _count_text(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"
