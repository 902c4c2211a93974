"""What it takes to rewrite a graph node by node. Imports the onnx package: for the build child only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


class Conv(NamedTuple):
    """What a convolution asks for, down the lines and across."""

    node: onnx.NodeProto
    weights: TensorProto
    attributes: dict[str, Any]
    height: int  # of the kernel
    stride: int  # down
    top: int  # lines of zeros before the first, and after the last
    bottom: int
    left: int
    right: int
    across: int  # stride

    @property
    def operands(self) -> list[str]:
        """Weights, and the bias if there is one."""
        return list(self.node.input[1:])

    @property
    def bias(self) -> list[str]:
        return self.operands[1:]


class GraphWriter:
    """Nodes and constants that are to take the place of a graph's."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        """
        Args:
            prefix: of the names of what is new; underscores are added where the graph has such names.
        """
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []
        names = [name for node in graph.node for name in (*node.input, *node.output)]
        self._prefix = prefix
        while any(name.startswith(self._prefix) for name in names):
            self._prefix += "_"

    def keep(self, node: onnx.NodeProto) -> None:
        self._nodes.append(node)

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add one; the name of its output."""
        output = output or f"{self._prefix}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, array: NDArray[Any]) -> str:
        """Add one; its name."""
        name = f"{self._prefix}.constant.{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def by_channel(
        self, lines: str, channels: int, factors: Sequence[float], *, top: int = 0, bottom: int = 0, stride: int = 1
    ) -> str:
        """Sums of lines one below the other, times these factors: a convolution by channel.

        Args:
            lines: shape (rows, channels, lines, columns).
            top: lines of zeros before the first.
            bottom: lines of zeros after the last.
            stride: lines from one sum to the next.
        """
        kernel = np.tile(np.array(factors, np.float32).reshape(1, 1, -1, 1), (channels, 1, 1, 1))
        return self.node(
            *("Conv", lines, self.constant(kernel)),
            group=channels,
            kernel_shape=kernel.shape[2:],
            pads=(top, 0, bottom, 0),
            strides=(stride, 1),
        )

    def write(self, graph: onnx.GraphProto) -> None:
        """Put everything into the graph, in place of what was there."""
        used = {name for node in self._nodes for name in node.input} | {value.name for value in graph.output}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        for field in (graph.node, graph.initializer, graph.value_info):
            del field[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend((*kept, *self._constants))


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes, by name."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of which ONNX can tell one; -1 for lengths that it cannot."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim
        )
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
