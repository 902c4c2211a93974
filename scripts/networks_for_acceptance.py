"""Three networks of known architectures with seeded random weights, as exporters write them: batch normalisation folded
into the convolutions, a dynamic batch axis, opset 17. They are made here, so that nothing has to be downloaded.

Their answers mean nothing. Their sizes, operators and value ranges are those of the real ones, and that is what an
engine's speed, memory and loss of accuracy depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17  # the newest that TensorRT 8 reads
IR_VERSION = 8  # of the ONNX release that brought that opset

_RELU = 2.0  # variance that a ReLU takes away, given back by the weights before it
_SILU = 2.5  # with 2.4 the signal of this seed dies out on the way, with 2.6 it grows threefold
_LINEAR = 1.0
_HEAD = 0.015  # small numbers before the softmax over bins and the sigmoid of scores, as a trained detector has


@dataclass(frozen=True)
class Network:
    """One network, and how it is built and fed."""

    name: str
    input: str
    side: int  # pixels, of the square input
    preprocess: str  # preset of the recipe
    rows_max: int  # largest batch to build for
    picture: tuple[int, int]  # width and height of its sample images, in pixels
    make: Callable[[], onnx.ModelProto]

    def shape(self, rows: int) -> tuple[int, ...]:
        return (rows, 3, self.side, self.side)


def resnet18() -> onnx.ModelProto:
    """ResNet-18: 11.7 million parameters; `logits` of 1000 classes.

    Source: He et al., Deep Residual Learning for Image Recognition, table 1.
    """
    graph = _Graph(18)
    x = graph.relu(graph.conv("image", 3, 64, kernel=7, stride=2, gain=_RELU))
    x = graph.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        x = _residual(graph, x, channels, width, stride)
        channels = width
    graph.classify(x, channels, "logits")
    return graph.model("resnet18", ("image", (3, 224, 224)), ("logits", (1000,)))


def mobilenet() -> onnx.ModelProto:
    """MobileNetV2: depthwise convolutions, ReLU6, linear bottlenecks; 3.5 million parameters.

    Source: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, table 2.
    """
    graph = _Graph(2)
    x = graph.relu6(graph.conv("image", 3, 32, kernel=3, stride=2, gain=_RELU))
    channels = 32
    for expansion, width, count, first_stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for index in range(count):
            x = _bottleneck(graph, x, channels, width, expansion, first_stride if index == 0 else 1)
            channels = width
    x = graph.relu6(graph.conv(x, channels, 1280, gain=_RELU))
    graph.classify(x, 1280, "logits")
    return graph.model("mobilenet", ("image", (3, 224, 224)), ("logits", (1000,)))


def yolo() -> onnx.ModelProto:
    """A detector like YOLOv8n: SiLU, split and joined branches, a pyramid of three scales, boxes decoded in the graph.

    `output0` is (rows, 84, 8400): centre, width and height in pixels, then the scores of 80 classes.

    Source: Jocher et al., Ultralytics YOLOv8, yolov8n.yaml.
    """
    graph = _Graph(8)
    scales = _pyramid(graph, _backbone(graph))
    heads = [_head(graph, x, channels) for x, channels in zip(scales, (64, 128, 256), strict=True)]
    _decode(graph, graph.node("Concat", heads, axis=2), side=640)
    return graph.model("yolo", ("images", (3, 640, 640)), ("output0", (84, 8400)))


NETWORKS = {
    network.name: network
    for network in (
        Network("resnet18", "image", 224, "imagenet", 8, (320, 240), resnet18),
        Network("mobilenet", "image", 224, "imagenet", 8, (320, 240), mobilenet),
        Network("yolo", "images", 640, "yolo", 4, (640, 480), yolo),
    )
}


class _Graph:
    """Nodes and weights, in the order they are added. Each method returns the name of its output."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[TensorProto] = []

    def node(self, operator: str, inputs: Sequence[str], *, output: str = "", **attributes: Any) -> str:
        (name,) = self.nodes(operator, inputs, [output or f"{operator.lower()}_{len(self._nodes)}"], **attributes)
        return name

    def nodes(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Sequence[str]:
        name = f"/{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs

    def constant(self, array: NDArray[Any]) -> str:
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def random(self, shape: Sequence[int], deviation: float) -> str:
        return self.constant(self._random.standard_normal(shape, np.float32) * np.float32(deviation))

    def conv(
        self, x: str, channels: int, filters: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, gain: float
    ) -> str:
        """A convolution that keeps the variance of what it reads, if `gain` is that of the activation behind it."""
        fan_in = channels // groups * kernel * kernel
        weights = self.random((filters, channels // groups, kernel, kernel), sqrt(gain / fan_in))
        return self.node(
            "Conv",
            [x, weights, self.random((filters,), 0.1)],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=groups,
        )

    def relu(self, x: str) -> str:
        return self.node("Relu", [x])

    def relu6(self, x: str) -> str:
        return self.node("Clip", [x, self.constant(np.float32(0)), self.constant(np.float32(6))])

    def silu(self, x: str) -> str:
        return self.node("Mul", [x, self.node("Sigmoid", [x])])

    def halves(self, x: str, first: int, second: int) -> Sequence[str]:
        """Both parts of axis 1."""
        names = [f"split_{len(self._nodes)}_{part}" for part in range(2)]
        return self.nodes("Split", [x, self.constant(np.array([first, second], np.int64))], names, axis=1)

    def classify(self, x: str, channels: int, output: str) -> None:
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])], axis=1)
        weights = self.random((1000, channels), sqrt(1 / channels))
        self.node("Gemm", [x, weights, self.random((1000,), 0.1)], output=output, transB=1)

    def model(self, name: str, read: tuple[str, Sequence[int]], made: tuple[str, Sequence[int]]) -> onnx.ModelProto:
        """The whole model; the shapes are those of one row."""
        inputs, outputs = (
            [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["batch", *shape])]
            for tensor, shape in (read, made)
        )
        graph = helper.make_graph(self._nodes, name, inputs, outputs, initializer=self._weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="jetforge"
        )


def _residual(graph: _Graph, x: str, channels: int, filters: int, stride: int) -> str:
    left = graph.relu(graph.conv(x, channels, filters, kernel=3, stride=stride, gain=_RELU))
    left = graph.conv(left, filters, filters, kernel=3, gain=_LINEAR)
    right = graph.conv(x, channels, filters, stride=stride, gain=_LINEAR) if channels != filters else x
    return graph.relu(graph.node("Add", [left, right]))


def _bottleneck(graph: _Graph, x: str, channels: int, filters: int, expansion: int, stride: int) -> str:
    inner = channels * expansion
    y = graph.relu6(graph.conv(x, channels, inner, gain=_RELU)) if expansion > 1 else x
    y = graph.relu6(graph.conv(y, inner, inner, kernel=3, stride=stride, groups=inner, gain=_RELU))
    y = graph.conv(y, inner, filters, gain=_LINEAR)
    return graph.node("Add", [x, y]) if stride == 1 and channels == filters else y


def _unit(graph: _Graph, x: str, channels: int, filters: int, kernel: int = 3, stride: int = 1) -> str:
    return graph.silu(graph.conv(x, channels, filters, kernel=kernel, stride=stride, gain=_SILU))


def _branched(graph: _Graph, x: str, channels: int, filters: int, count: int, *, adds: bool) -> str:
    """YOLOv8's C2f: one half goes through `count` small blocks, and all steps on the way are joined."""
    half = filters // 2
    parts = list(graph.halves(_unit(graph, x, channels, filters, kernel=1), half, half))
    for _ in range(count):
        y = _unit(graph, _unit(graph, parts[-1], half, half), half, half)
        parts.append(graph.node("Add", [parts[-1], y]) if adds else y)
    return _unit(graph, graph.node("Concat", parts, axis=1), half * len(parts), filters, kernel=1)


def _backbone(graph: _Graph) -> list[str]:
    """Features at strides 8, 16 and 32, of 64, 128 and 256 channels."""
    x = _unit(graph, "images", 3, 16, stride=2)
    features = []
    for channels, filters, count in ((16, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 1)):
        x = _branched(graph, _unit(graph, x, channels, filters, stride=2), filters, filters, count, adds=True)
        features.append(x)
    return [*features[1:3], _pooled(graph, x, 256)]


def _pooled(graph: _Graph, x: str, channels: int) -> str:
    """YOLOv8's SPPF: three poolings one after the other, joined."""
    parts = [_unit(graph, x, channels, channels // 2, kernel=1)]
    for _ in range(3):
        pool = graph.node("MaxPool", [parts[-1]], kernel_shape=[5, 5], strides=[1, 1], pads=[2, 2, 2, 2])
        parts.append(pool)
    return _unit(graph, graph.node("Concat", parts, axis=1), channels * 2, channels, kernel=1)


def _pyramid(graph: _Graph, features: Sequence[str]) -> list[str]:
    """Down from the coarsest features to the finest and up again."""
    fine, middle, coarse = features
    middle = _branched(graph, _joined(graph, _enlarged(graph, coarse), middle), 384, 128, 1, adds=False)
    fine = _branched(graph, _joined(graph, _enlarged(graph, middle), fine), 192, 64, 1, adds=False)
    x = _joined(graph, _unit(graph, fine, 64, 64, stride=2), middle)
    middle = _branched(graph, x, 192, 128, 1, adds=False)
    x = _joined(graph, _unit(graph, middle, 128, 128, stride=2), coarse)
    return [fine, middle, _branched(graph, x, 384, 256, 1, adds=False)]


def _joined(graph: _Graph, first: str, second: str) -> str:
    return graph.node("Concat", [first, second], axis=1)


def _enlarged(graph: _Graph, x: str) -> str:
    return graph.node(
        "Resize",
        [x, "", graph.constant(np.array([1, 1, 2, 2], np.float32))],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _head(graph: _Graph, x: str, channels: int) -> str:
    """(rows, 64 + 80, cells): 16 bins for each side of the box, then the classes."""
    boxes = _unit(graph, _unit(graph, x, channels, 64), 64, 64)
    scores = _unit(graph, _unit(graph, x, channels, 80), 80, 80)
    parts = [graph.conv(boxes, 64, 64, gain=_HEAD), graph.conv(scores, 80, 80, gain=_HEAD)]
    shape = graph.constant(np.array([0, 144, -1], np.int64))
    return graph.node("Reshape", [graph.node("Concat", parts, axis=1), shape])


def _decode(graph: _Graph, x: str, side: int) -> None:
    """Bins → distances to the sides → boxes in pixels; scores → 0..1."""
    centres, strides = _cells(side)
    boxes, scores = graph.halves(x, 64, 80)
    bins = graph.node("Reshape", [boxes, graph.constant(np.array([0, 4, 16, -1], np.int64))])
    bins = graph.node("Softmax", [graph.node("Transpose", [bins], perm=[0, 2, 1, 3])], axis=1)
    weights = graph.constant(np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1))
    distances = graph.node("Conv", [bins, weights], kernel_shape=[1, 1])
    distances = graph.node("Reshape", [distances, graph.constant(np.array([0, 4, -1], np.int64))])
    before, after = graph.halves(distances, 2, 2)
    low = graph.node("Sub", [graph.constant(centres), before])
    high = graph.node("Add", [graph.constant(centres), after])
    middle = graph.node("Div", [graph.node("Add", [low, high]), graph.constant(np.float32(2))])
    sizes = graph.node("Sub", [high, low])
    pixels = graph.node("Mul", [_joined(graph, middle, sizes), graph.constant(strides)])
    graph.node("Concat", [pixels, graph.node("Sigmoid", [scores])], output="output0", axis=1)


def _cells(side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres of all cells, (1, 2, cells) in units of their stride, and the strides, (1, cells), in pixels."""
    centres, strides = [], []
    for stride in (8, 16, 32):
        places = np.arange(side // stride, dtype=np.float32) + np.float32(0.5)
        x, y = np.meshgrid(places, places)
        centres.append(np.stack([x.ravel(), y.ravel()]))
        strides.append(np.full(x.size, stride, np.float32))
    return np.concatenate(centres, axis=1)[np.newaxis], np.concatenate(strides)[np.newaxis]
