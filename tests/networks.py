"""Tiny ONNX networks that know their answer. Each is a whole model; `saved` writes one for a backend or a build."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 9  # older than what every supported runtime reads

Dims = Sequence[int | str]


def saved(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def network(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[TensorProto] = (),
    opset: int = OPSET,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializer=list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


def value(name: str, dims: Dims, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(dims))


def constant(name: str, array: NDArray[np.generic]) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


# --- row by row: axis 0 is a batch axis --------------------------------------------------------------------------


def doubled(features: int = 4, factor: float = 2) -> onnx.ModelProto:
    """y = 2 x, of shape (rows, features); or another factor."""
    return network(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        [value("x", ["rows", features])],
        [value("y", ["rows", features])],
        [constant("two", np.float32(factor))],
    )


def doubled_with_marker(marker: str) -> onnx.ModelProto:
    """`doubled`, its file's digest different for every marker."""
    model = doubled()
    model.doc_string = marker
    return model


CLASSIFIER_WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, -0.5, 0.25]], np.float32)


def classifier() -> onnx.ModelProto:
    """logits = x · CLASSIFIER_WEIGHTS, of shape (rows, 3); the largest of the first three features wins."""
    return network(
        [helper.make_node("MatMul", ["x", "weights"], ["logits"])],
        [value("x", ["rows", 4])],
        [value("logits", ["rows", 3])],
        [constant("weights", CLASSIFIER_WEIGHTS)],
    )


def channel_means(height: int | str = 8, width: int | str = 8, rows: int | str = "rows") -> onnx.ModelProto:
    """An image classifier: the three logits are the means of the channels of `image` (rows, 3, height, width)."""
    return network(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["means"]),
            helper.make_node("Flatten", ["means"], ["logits"]),
        ],
        [value("image", [rows, 3, height, width])],
        [value("logits", [rows, 3])],
    )


def convolved() -> onnx.ModelProto:
    """y = relu(conv(x, ones(3×3) · k)) for k = 1..16, of shape (rows, 16, 6, 6): an optimiser changes its layout."""
    weights = np.ones((16, 8, 3, 3), np.float32) * np.arange(1, 17, dtype=np.float32).reshape(-1, 1, 1, 1)
    return network(
        [
            helper.make_node("Conv", ["x", "weights"], ["sums"], kernel_shape=[3, 3]),
            helper.make_node("Relu", ["sums"], ["y"]),
        ],
        [value("x", ["rows", 8, 8, 8])],
        [value("y", ["rows", 16, 6, 6])],
        [constant("weights", weights)],
    )


def normalised_convolution(dtype: type[np.floating]) -> onnx.ModelProto:
    """A convolution and a batch normalisation with seeded weights: an optimiser fuses them, which rounds elsewhere."""
    random = np.random.default_rng(3)
    shapes = {"weights": (8, 3, 3, 3), "scale": (8,), "bias": (8,), "mean": (8,), "variance": (8,)}
    weights = {name: random.uniform(0.5, 1.5, shape).astype(dtype) for name, shape in shapes.items()}
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return network(
        [
            helper.make_node("Conv", ["x", "weights"], ["c"], kernel_shape=[3, 3]),
            helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "variance"], ["y"]),
        ],
        [value("x", ["rows", 3, 8, 8], onnx_type)],
        [value("y", ["rows", 8, 6, 6], onnx_type)],
        [constant(name, array) for name, array in weights.items()],
    )


def sum_and_difference() -> onnx.ModelProto:
    """Two inputs and two outputs: total = a + b, rest = a − b."""
    return network(
        [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Sub", ["a", "b"], ["rest"])],
        [value("a", ["rows", 2]), value("b", ["rows", 2])],
        [value("total", ["rows", 2]), value("rest", ["rows", 2])],
    )


def same(dtype: int, dims: Dims = ("rows", 3)) -> onnx.ModelProto:
    """y = x, of any element type."""
    return network([helper.make_node("Identity", ["x"], ["y"])], [value("x", dims, dtype)], [value("y", dims, dtype)])


def looked_up() -> onnx.ModelProto:
    """y[i] = 10 · x[i] for int64 x in 0..4: any other index fails."""
    return network(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [value("x", ["rows"], TensorProto.INT64)],
        [value("y", ["rows"])],
        [constant("table", np.array([0, 10, 20, 30, 40], np.float32))],
    )


def resnet18(width: int = 64, side: int = 224, classes: int = 1000, rows: int | str = "rows") -> onnx.ModelProto:
    """ResNet-18 as PyTorch exports it for inference, with seeded random weights: `image` → `logits`.

    Args:
        width: channels of the first block; 64 in the original.
    """
    made = _Layers(np.random.default_rng(18))
    x = made.add("Relu", made.normalised(made.conv("image", 3, width, 7, stride=2)))
    x = made.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = width
    for stage in range(4):
        for block in range(2):
            x = made.residual(x, channels, width << stage, stride=2 if stage and not block else 1)
            channels = width << stage
    pooled = made.add("Flatten", made.add("GlobalAveragePool", x))
    weight = made.weight(made.random.normal(0, channels**-0.5, (classes, channels)))
    bias = made.weight(made.random.normal(0, 0.1, classes))
    made.nodes.append(helper.make_node("Gemm", [pooled, weight, bias], ["logits"], name="fc", transB=1))
    return network(
        made.nodes,
        [value("image", [rows, 3, side, side])],
        [value("logits", [rows, classes])],
        made.weights,
    )


class _Layers:
    """Nodes and weights of a network, as they are added; each method gives the name of what it makes."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def weight(self, array: NDArray[np.floating]) -> str:
        name = f"weight{len(self.weights)}"
        self.weights.append(constant(name, array.astype(np.float32)))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> str:
        weight = self.weight(
            self.random.normal(0, (2 / (inputs * kernel**2)) ** 0.5, (outputs, inputs, kernel, kernel))
        )
        pads = [kernel // 2] * 4
        return self.add("Conv", x, weight, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)

    def normalised(self, x: str) -> str:
        channels = next(weight for weight in self.weights if weight.name == self.nodes[-1].input[1]).dims[0]
        drawn = [
            self.random.uniform(low, high, channels) for low, high in ((0.5, 1), (-0.2, 0.2), (-0.2, 0.2), (0.8, 1.2))
        ]
        return self.add("BatchNormalization", x, *map(self.weight, drawn))

    def residual(self, x: str, inputs: int, outputs: int, stride: int) -> str:
        inner = self.add("Relu", self.normalised(self.conv(x, inputs, outputs, 3, stride)))
        inner = self.normalised(self.conv(inner, outputs, outputs, 3))
        beside = x if inputs == outputs else self.normalised(self.conv(x, inputs, outputs, 1, stride))
        return self.add("Relu", self.add("Add", inner, beside))


# --- not row by row ----------------------------------------------------------------------------------------------


def centred() -> onnx.ModelProto:
    """y = x − mean of the rows: the answer to a row depends on its neighbours, though axis 0 is declared open."""
    return network(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [value("x", ["rows", 4])],
        [value("y", ["rows", 4])],
    )


def flattened_to_one_row() -> onnx.ModelProto:
    """Declares any batch, but a Reshape to (1, 4) accepts one row only."""
    return network(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", ["rows", 4])],
        [value("y", ["rows", 4])],
        [constant("shape", np.array([1, 4], np.int64))],
    )


def scalar_plus_one() -> onnx.ModelProto:
    """y = x + 1, both scalars."""
    return network(
        [helper.make_node("Add", ["x", "one"], ["y"])],
        [value("x", [])],
        [value("y", [])],
        [constant("one", np.float32(1))],
    )


def no_inputs() -> onnx.ModelProto:
    """y = (1, 2, 3), always."""
    return network(
        [helper.make_node("Identity", ["fixed"], ["y"])],
        [],
        [value("y", [3])],
        [constant("fixed", np.array([1, 2, 3], np.float32))],
    )


def square_only(side: int) -> onnx.ModelProto:
    """An image network whose height and width are declared open, but whose last layer fits one size only."""
    return network(
        [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["y"])],
        [value("image", ["rows", 1, "height", "width"])],
        [value("y", ["rows", 2])],
        [constant("weights", np.ones((side * side, 2), np.float32))],
    )


def noisy() -> onnx.ModelProto:
    """y = x + noise: two runs differ."""
    return network(
        [
            helper.make_node("RandomNormalLike", ["x"], ["noise"]),
            helper.make_node("Add", ["x", "noise"], ["y"]),
        ],
        [value("x", ["rows", 4])],
        [value("y", ["rows", 4])],
    )


def with_initializer_as_input() -> onnx.ModelProto:
    """`doubled`, its weight listed among the graph's inputs as older exporters do."""
    model = doubled()
    model.graph.input.append(value("two", []))
    return model


def detector(side: int = 64, seed: int = 1) -> onnx.ModelProto:
    """Boxes as YOLOv8 decodes them: for each cell four distances to its sides, each the mean over 16 bins in pixels.

    Of many boxes, some lie between two bins far apart, and jump when anything is rounded.
    """
    random = np.random.default_rng(seed)
    cells = (side // 4) ** 2
    widths = (3, 24, 48, 64)
    kernels = [
        (random.standard_normal((out, into, 3, 3)) * np.sqrt(2 / (9 * into))).astype(np.float32)
        for into, out in pairwise(widths)
    ]
    kernels[2] *= 40  # bins far apart, as training makes them
    bins = np.arange(16, dtype=np.float32).reshape(1, 1, 16, 1)
    nodes = [
        helper.make_node("Conv", ["images", "k0"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "k1"], ["c"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "k2"], ["e"], pads=[1] * 4),
        helper.make_node("Reshape", ["e", "by_side"], ["f"]),
        helper.make_node("Softmax", ["f"], ["g"], axis=2),
        helper.make_node("Mul", ["g", "bins"], ["h"]),
        helper.make_node("ReduceSum", ["h", "axis"], ["distances"], keepdims=0),
        helper.make_node("Mul", ["distances", "stride"], ["boxes"]),
    ]
    return network(
        nodes,
        [value("images", ["rows", 3, side, side])],
        [value("boxes", ["rows", 4, cells])],
        [
            *(constant(f"k{number}", kernel) for number, kernel in enumerate(kernels)),
            constant("by_side", np.array([0, 4, 16, cells], np.int64)),
            constant("bins", bins),
            constant("axis", np.array([2], np.int64)),
            constant("stride", np.array(16, np.float32)),
        ],
    )


# --- that cannot be built ----------------------------------------------------------------------------------------


def endless_loop() -> onnx.ModelProto:
    """Runs for ever: a Loop whose condition stays true."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"]), helper.make_node("Add", ["state", "one"], ["next"])],
        "body",
        [value("turn", [], TensorProto.INT64), value("go_on", [], TensorProto.BOOL), value("state", [1])],
        [value("still", [], TensorProto.BOOL), value("next", [1])],
        [constant("one", np.ones(1, np.float32))],
    )
    return network(
        [helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)],
        [value("x", [1])],
        [value("y", [1])],
        [constant("true", np.array(True))],
    )


def custom_operators() -> onnx.ModelProto:
    """Uses acme::Foo twice and acme::Bar once: nobody has them."""
    model = network(
        [
            helper.make_node("Foo", ["x"], ["a"], domain="acme"),
            helper.make_node("Foo", ["a"], ["b"], domain="acme"),
            helper.make_node("Bar", ["b"], ["y"], domain="acme"),
        ],
        [value("x", [1])],
        [value("y", [1])],
    )
    model.opset_import.append(helper.make_opsetid("acme", 1))
    return model


def external_weights(location: str = "weights.bin") -> onnx.ModelProto:
    """`doubled`, its weight in another file."""
    model = doubled()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location
    return model


def falsely_declared() -> onnx.ModelProto:
    """`doubled`, its output declared with another length: the checker's shape inference finds it."""
    model = doubled()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    return model
