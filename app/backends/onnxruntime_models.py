"""Which models this ONNX Runtime reads. Imports the onnx package: for the build child only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper
from onnxruntime.capi import _pybind_state as native

from app.domain.errors import OperatorUnsupported, OpsetUnsupported

OLDEST_OPSET = 7  # the runtime guarantees nothing for older ones
_ONNX_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Limits:
    ir: int  # newest IR version that is read
    opset: int  # newest opset of ONNX's own domain that is read


@cache
def limits() -> Limits:
    """The newest versions that this runtime reads and this onnx package writes: found by asking, as no table fits
    every release."""
    opset = next(version for version in range(onnx.defs.onnx_opset_version(), 0, -1) if _reads(version, 4))
    ir = next(version for version in range(onnx.IR_VERSION, 3, -1) if _reads(opset, version))
    return Limits(ir, opset)


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of ONNX's own domain; 0 when the model uses none."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in _ONNX_DOMAINS), 0)


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node: of the graph, of graphs inside nodes, of the model's own functions."""
    yield from _walked(model.graph.node)
    for function in model.functions:
        yield from _walked(function.node)


def is_split(path: Path) -> bool:
    """Whether some of the file's weights are in other files."""
    try:
        return bool(split_tensors(onnx.load_model(str(path), load_external_data=False)))
    except DecodeError:  # the runtime says better what is wrong with it
        return False


def split_tensors(model: onnx.ModelProto) -> list[TensorProto]:
    """Every tensor whose values are in another file."""
    return [tensor for tensor in tensors_of(model) if tensor.data_location == TensorProto.EXTERNAL]


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every constant: of the graph, of graphs inside nodes, of the nodes' attributes."""
    graphs = [model.graph]
    for node in nodes_of(model):
        for attribute in node.attribute:
            graphs.extend((attribute.g, *attribute.graphs))
            sparse = (attribute.sparse_tensor, *attribute.sparse_tensors)
            yield from (attribute.t, *attribute.tensors)
            yield from (part for tensor in sparse for part in (tensor.values, tensor.indices))
    for graph in graphs:
        yield from graph.initializer
        yield from (part for tensor in graph.sparse_initializer for part in (tensor.values, tensor.indices))


def check(path: Path) -> None:
    """Refuse a model that this runtime cannot read.

    Raises:
        OperatorUnsupported: names every operator that is missing.
        OpsetUnsupported: the opset or the IR version is too new.
    """
    model = onnx.load_model(str(path), load_external_data=False)
    refuse_newer(model, limits())
    missing = _unknown_operators(model)
    if not missing:
        missing = _operators_without_kernel(model, path)
    if missing:
        named = ", ".join(f"{name} ({count}×)" for name, count in sorted(missing.items()))
        raise OperatorUnsupported(
            f"ONNX Runtime {ort.__version__} lacks operators of this model, at least for their types and opset:"
            f" {named}.",
            hint="Export with an older opset, in float32, and without custom operators.",
        )


def refuse_newer(model: onnx.ModelProto, newest: Limits) -> None:
    """Raise OpsetUnsupported when the model's versions are newer than these."""
    opset = opset_of(model)
    if opset > newest.opset or model.ir_version > newest.ir:
        raise OpsetUnsupported(
            f"The model has opset {opset} and IR version {model.ir_version}; ONNX Runtime {ort.__version__} reads"
            f" opsets up to {newest.opset} and IR versions up to {newest.ir}.",
            hint=f"Export the model with opset {min(17, newest.opset)}.",
        )


def _reads(opset: int, ir: int) -> bool:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "probe",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    try:
        ort.InferenceSession(model.SerializeToString(), _quiet(), providers=["CPUExecutionProvider"])
    except Exception:  # the runtime's exceptions have no base of their own
        return False
    return True


def _quiet() -> ort.SessionOptions:
    setup = ort.SessionOptions()
    setup.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    setup.log_severity_level = 4
    return setup


def _walked(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _walked(graph.node)


def _unknown_operators(model: onnx.ModelProto) -> Counter[str]:
    """Operators that neither the runtime nor the model itself defines, by how often they are used."""
    known = _operators_with_schema() | {(function.domain, function.name) for function in model.functions}
    return Counter(_named(node) for node in nodes_of(model) if (_domain(node), node.op_type) not in known)


def _operators_without_kernel(model: onnx.ModelProto, path: Path) -> Counter[str]:
    """Operators that the runtime knows by name but cannot run, by how often they are used."""
    try:
        ort.InferenceSession(str(path), _quiet(), providers=["CPUExecutionProvider"])
    except native.NotImplemented as error:
        runnable = _operators_with_kernel() | {(function.domain, function.name) for function in model.functions}
        found = Counter(_named(node) for node in nodes_of(model) if not _runs(node, runnable))
        return found or _named_in(str(error), model)
    except Exception:  # refused for another reason: the reference run tells it in its place
        return Counter()
    return Counter()


def _named_in(words: str, model: onnx.ModelProto) -> Counter[str]:
    """The operator that the runtime names: it has a kernel for it, but not for its element types or opset."""
    match = re.search(r"(?:implementation|kernel) for (\w+)\(", words)
    if match is None:
        return Counter([words[:200]])
    name = match.group(1)  # it may stand in an ONNX operator that is a function: then no node is of that name
    return Counter(_named(node) for node in nodes_of(model) if node.op_type == name) or Counter([f"ai.onnx::{name}"])


@cache
def _operators_with_schema() -> frozenset[tuple[str, str]]:
    return frozenset((entry.domain, entry.name) for entry in native.get_all_operator_schema())


def _operators_with_kernel() -> set[tuple[str, str]]:
    kernels = native.get_all_opkernel_def()
    named = {(entry.domain, entry.op_name) for entry in kernels if entry.provider == "CPUExecutionProvider"}
    return named | {("", "Constant")}  # becomes an initializer before anything runs


def _runs(node: onnx.NodeProto, runnable: set[tuple[str, str]]) -> bool:
    domain = _domain(node)
    if (domain, node.op_type) in runnable:
        return True
    if domain or not onnx.defs.has(node.op_type):
        return False
    schema: Any = onnx.defs.get_schema(node.op_type)  # its stub lacks what is asked here
    return bool(schema.has_function or schema.has_context_dependent_function)


def _domain(node: onnx.NodeProto) -> str:
    return "" if node.domain in _ONNX_DOMAINS else str(node.domain)


def _named(node: onnx.NodeProto) -> str:
    return f"{_domain(node) or 'ai.onnx'}::{node.op_type}"
