"""A graph in float32 → the same in float16, its inputs and outputs as they were."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.version_converter
from onnx import TensorProto

from app.backends.onnxruntime_models import opset_of
from app.domain.errors import CastFailed

_LARGEST, _SMALLEST = 65504.0, 6e-8  # of a float16, other than 0
_HALF_SCALES = 19  # opset from which a Q/DQ node may have a float16 scale


def cast_to_half(model: Path, out: Path) -> list[str]:
    """Write the cast graph to `out`.

    In a graph with Q/DQ nodes these stay integer; their scales, and all else, become float16. That needs opset 19:
    an older graph is raised to it.

    Returns:
        Weights that a float16 cannot hold: they were cut to its largest value.

    Raises:
        CastFailed: the graph cannot be cast, or is in float16 already.
    """
    # Here, as it costs builds that do not cast 0.2 s.
    from onnxconverter_common.float16 import convert_float_to_float16

    graph = onnx.load_model(str(model))
    try:
        if any(node.op_type == "QuantizeLinear" for node in graph.graph.node) and opset_of(graph) < _HALF_SCALES:
            graph = onnx.version_converter.convert_version(graph, _HALF_SCALES)
        for index, node in enumerate(_nodes(graph.graph)):
            node.name = node.name or f"{node.op_type}_{index}"  # the converter tells nodes apart by their names
        cut = [tensor.name for tensor in graph.graph.initializer if _is_too_large(tensor)]
        casts = {node.name for node in _nodes(graph.graph) if _is_cast(node)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each weight that is cut: told here together
            half = convert_float_to_float16(graph, _SMALLEST, _LARGEST, keep_io_types=True)
        _cast_to_half(half, casts)
        onnx.save_model(half, str(out))
    except Exception as error:  # the converters raise whatever goes wrong in them
        raise CastFailed(
            f"The model could not be cast to float16: {type(error).__name__}: {str(error)[:300]}",
            hint="Build with simplify=true, or with precision=fp32.",
        ) from error
    return cut


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of inner graphs as well."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(inner)


def _is_cast(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == TensorProto.FLOAT for a in node.attribute)


def _cast_to_half(model: onnx.ModelProto, names: set[str]) -> None:
    """Have the model's own casts make float16, which the converter declares but leaves them to do otherwise."""
    for node in _nodes(model.graph):
        if node.name in names and _is_cast(node):
            node.attribute[0].i = TensorProto.FLOAT16


def _is_too_large(tensor: TensorProto) -> bool:
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = onnx.numpy_helper.to_array(tensor)
    return bool(values.size and abs(values).max() > _LARGEST)
