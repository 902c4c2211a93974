"""Q/DQ nodes where TensorRT wants them: symmetric int8, only on what its integer kernels read.

That is the inputs of Conv, ConvTranspose, Gemm and MatMul, weights per channel, and one branch of a residual Add: the
one that does not come from the last convolution, which TensorRT fuses with the addition. Q/DQ on the outputs too, as
ONNX Runtime places them, was measured 27 % slower there, and 15 times as long to build.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from app.build.quantise_ranges import Ranges

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_LARGEST = 127


def activations(model: onnx.ModelProto, floats: Collection[str]) -> list[str]:
    """The tensors whose ranges are needed, each once.

    Args:
        floats: the float32 tensors of the graph that are no weights.
    """
    graph = _Graph(model.graph)
    return list(dict.fromkeys(name for _, name in _quantised_inputs(graph, floats)))


def place(model: onnx.ModelProto, ranges: Ranges) -> None:
    """Put the nodes into the graph; every activation with a range gets them."""
    graph = _Graph(model.graph)
    wanted: dict[int, list[int]] = {}
    for (node, position), _ in _quantised_inputs(graph, ranges):
        wanted.setdefault(node, []).append(position)
    placed = _Placed(model.graph)
    for index, node in enumerate(graph.nodes):
        for position in wanted.get(index, ()):
            low, high = ranges[node.input[position]]
            placed.quantise(node, position, np.float32(_scale(max(abs(low), abs(high)))))
        if index in wanted and node.op_type in WEIGHTED and node.input[1] in graph.weights:
            _quantise_weight(placed, node, numpy_helper.to_array(graph.weights[node.input[1]]))
        placed.nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(placed.nodes)


class _Graph:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: index for index, node in enumerate(self.nodes) for name in node.output}

    def convolution_behind(self, name: str) -> int:
        """Index of the convolution that makes the tensor, a batch normalisation between them or not; else −1."""
        index = self.producers.get(name, -1)
        if index >= 0 and self.nodes[index].op_type == "BatchNormalization":
            index = self.producers.get(self.nodes[index].input[0], -1)
        return index if index >= 0 and self.nodes[index].op_type in _CONVOLUTIONS else -1


def _quantised_inputs(graph: _Graph, floats: Collection[str]) -> Iterator[tuple[tuple[int, int], str]]:
    """(index of the node, position of the input) and the tensor there."""
    for index, node in enumerate(graph.nodes):
        positions = (0, 1) if node.op_type in WEIGHTED else _residual(graph, node)
        if positions and node.input[0] not in graph.weights:  # a constant on the left: no kernel reads it as int8
            yield from (
                ((index, position), node.input[position]) for position in positions if node.input[position] in floats
            )


def _residual(graph: _Graph, node: onnx.NodeProto) -> tuple[int, ...]:
    """The input of an addition of two activations that is not made by the last convolution before it."""
    if node.op_type != "Add" or any(name in graph.weights for name in node.input) or node.input[0] == node.input[1]:
        return ()
    first, second = (graph.convolution_behind(name) for name in node.input)
    if first == second:  # no convolution on either side
        return ()
    return (0,) if second > first else (1,)


class _Placed:
    """The graph's nodes in their new order, and the pairs among them."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._graph = graph

    def quantise(
        self, node: onnx.NodeProto, position: int, scale: np.float32 | NDArray[np.float32], axis: int | None = None
    ) -> None:
        """Put a pair in front of one input. Each has its own: TensorRT fuses a pair with one layer."""
        name = f"{node.input[position]}/int8/{len(self.nodes)}"
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(scale, np.float32), f"{name}/scale"))
        zeros = np.zeros(np.shape(scale), np.int8)
        self._graph.initializer.append(numpy_helper.from_array(zeros, f"{name}/zero"))
        axes: dict[str, Any] = {} if axis is None else {"axis": axis}
        numbers = [f"{name}/scale", f"{name}/zero"]
        for kind, source, target in (
            ("QuantizeLinear", node.input[position], f"{name}/q"),
            ("DequantizeLinear", f"{name}/q", f"{name}/dq"),
        ):
            self.nodes.append(helper.make_node(kind, [source, *numbers], [target], name=target, **axes))
        node.input[position] = f"{name}/dq"


def _quantise_weight(placed: _Placed, node: onnx.NodeProto, weight: NDArray[np.float32]) -> None:
    axis = _channel_axis(node, weight)
    if axis is None:
        placed.quantise(node, 1, np.float32(_scale(float(np.abs(weight).max(initial=0)))))
        return
    others = tuple(other for other in range(weight.ndim) if other != axis)
    largest = np.abs(weight).max(axis=others, initial=0)
    placed.quantise(node, 1, np.array([_scale(float(value)) for value in largest], np.float32), axis)


def _channel_axis(node: onnx.NodeProto, weight: NDArray[np.float32]) -> int | None:
    """The axis of the output channels; None: one scale for all."""
    numbers = {attribute.name: attribute.i for attribute in node.attribute if attribute.type == attribute.INT}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if numbers.get("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if numbers.get("transB", 0) else 1
    return 1 if weight.ndim == 2 else None


def _scale(largest: float) -> float:
    """Never 0, which runtimes refuse, nor less than what a float16 holds."""
    return max(largest / _LARGEST, 2.0**-20)
