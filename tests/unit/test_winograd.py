from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.backends.onnxruntime_winograd import rewrite
from tests import networks

CHANNELS = 64
PLAIN = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}

Array = NDArray[np.float32]


class Layers:
    """A network in the making: `x` → whatever is made of it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self._random = np.random.default_rng(3)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def conv(
        self,
        x: str = "x",
        *,
        inputs: int = CHANNELS,
        filters: int = CHANNELS,
        bias: bool = True,
        dtype: type = np.float32,
        **changed: Any,
    ) -> str:
        attributes = {name: given for name, given in {**PLAIN, **changed}.items() if given is not None}
        shape = (filters, inputs // attributes.get("group", 1), *attributes["kernel_shape"])
        operands = [self._random.normal(0, 0.05, shape)] + [self._random.normal(0, 0.5, filters)] * bias
        names = [f"weights.{len(self.weights) + number}" for number in range(len(operands))]
        self.weights += [
            networks.constant(name, array.astype(dtype)) for name, array in zip(names, operands, strict=True)
        ]
        return self.add("Conv", x, *names, **attributes)

    def network(
        self,
        *outputs: str,
        lines: int | str = 8,
        columns: int = 9,
        channels: int = CHANNELS,
        dtype: int = TensorProto.FLOAT,
        opset: int = networks.OPSET,
    ) -> onnx.ModelProto:
        unknown = ["rows", "channels", "lines", "columns"]
        return networks.network(
            self.nodes,
            [networks.value("x", ["rows", channels, lines, columns], dtype)],
            [networks.value(name, unknown, dtype) for name in outputs],
            self.weights,
            opset=opset,
        )


def answers(model: onnx.ModelProto, x: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def assert_same_answers(model: onnx.ModelProto, rewritten: int) -> None:
    """Rewriting changes so many convolutions, and none of the answers to one row and to three."""
    columns = model.graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value for dim in columns][1:]
    inputs = [np.random.default_rng(rows).normal(size=(rows, *shape)).astype(np.float32) for rows in (1, 3)]
    wanted = [answers(model, x) for x in inputs]

    assert rewrite(model) == rewritten

    onnx.checker.check_model(model, full_check=True)
    for x, outputs in zip(inputs, wanted, strict=True):
        for found, output in zip(answers(model, x), outputs, strict=True):
            assert found.shape == output.shape
            np.testing.assert_allclose(found, output, rtol=0, atol=2e-6 * float(np.abs(output).max()))


@pytest.mark.parametrize("lines", [7, 8, 9, 14, 15])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_answers_as_before_with_even_and_odd_numbers_of_lines(lines, bias):
    layers = Layers()
    y = layers.conv(bias=bias)

    assert_same_answers(layers.network(y, lines=lines), rewritten=1)


def test_it_is_computed_with_two_thirds_of_the_products():
    layers = Layers()
    model = layers.network(layers.conv())

    rewrite(model)

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    products = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            kernel = numpy_helper.to_array(weights[node.input[1]])
            products += kernel.size * (4 if kernel.shape[1] > 1 else 0)  # each is for the four pairs of lines
    assert products == 2 / 3 * CHANNELS * CHANNELS * 9 * 8


def across(layers: Layers) -> list[str]:
    return [layers.conv(kernel_shape=[3, 5], pads=[1, 0, 1, 2], strides=[1, 2])]


def residual(layers: Layers) -> list[str]:
    inner = layers.add("Relu", layers.conv())
    return [layers.add("Relu", layers.add("Add", layers.conv(inner), "x"))]


def gate(layers: Layers) -> list[str]:
    y = layers.conv()
    return [layers.conv(layers.add("Mul", y, layers.add("Sigmoid", y)))]


def narrow(layers: Layers) -> list[str]:
    y = layers.conv(layers.conv(), filters=32, kernel_shape=[1, 1], pads=[0, 0, 0, 0])
    return [layers.add("LeakyRelu", y, alpha=0.1)]


def stage(layers: Layers) -> list[str]:
    y = layers.add("Relu", layers.conv())
    down = layers.conv(y, filters=128, strides=[2, 2])
    beside = layers.conv(y, filters=128, kernel_shape=[1, 1], pads=[0, 0, 0, 0], strides=[2, 2])
    return [layers.add("Add", down, beside)]


def by_channel(layers: Layers) -> list[str]:
    return [layers.conv(layers.conv(), group=CHANNELS, strides=[2, 1])]


def concat(layers: Layers) -> list[str]:
    return [layers.conv(layers.add("Concat", layers.conv(), "x", axis=1), inputs=2 * CHANNELS)]


def pooled(layers: Layers) -> list[str]:
    y = layers.conv()
    return [layers.add("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), layers.add("GlobalAveragePool", y), y]


def spread(layers: Layers) -> list[str]:
    return [layers.conv(layers.conv(), kernel_shape=[5, 5], pads=[2, 2, 2, 2])]


def same(layers: Layers) -> list[str]:
    y = layers.conv()
    return [layers.add("Add", y, y)]


@pytest.mark.parametrize("lines", [8, 9])
@pytest.mark.parametrize(
    ("made", "rewritten"),
    [
        (across, 1),
        (residual, 2),
        (gate, 2),
        (narrow, 1),
        (stage, 1),
        (by_channel, 1),
        (concat, 2),
        (pooled, 1),
        (spread, 1),
        (same, 1),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_follows_takes_the_lines_apart_or_put_together(
    made: Callable[[Layers], list[str]], rewritten: int, lines: int
):
    layers = Layers()
    outputs = made(layers)

    assert_same_answers(layers.network(*outputs, lines=lines), rewritten)


def test_lines_stay_apart_from_one_convolution_to_the_next():
    layers = Layers()
    model = layers.network(*residual(layers))

    rewrite(model)

    assert [node.op_type for node in model.graph.node].count("Reshape") == 1  # at the end


def test_a_whole_resnet_is_rewritten():
    model = networks.resnet18(side=224)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    wanted = session.run(None, {"image": x})[0]

    assert rewrite(model) == 13  # 16 of 3×3, but for three with a stride

    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": x})[0]
    noise_db = 10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum())
    assert noise_db > 120


@pytest.mark.parametrize(
    ("changed", "shape"),
    [
        ({"inputs": 32}, {"channels": 32}),
        ({"filters": 32}, {}),
        ({"filters": 72}, {}),  # no whole number of blocks
        ({"group": 2}, {}),
        ({"dilations": [2, 2]}, {}),
        ({"strides": [2, 1]}, {}),
        ({"pads": [0, 1, 0, 1]}, {}),
        ({"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]}, {}),
        ({"kernel_shape": [3, 1], "pads": [1, 0, 1, 0]}, {}),
        ({"auto_pad": "SAME_UPPER", "pads": None}, {}),
        ({"dtype": np.float16}, {"dtype": TensorProto.FLOAT16}),
        ({}, {"lines": 6}),
        ({}, {"lines": "open"}),
        ({}, {"opset": 9}),
    ],
    ids=str,
)
def test_what_would_not_gain_or_is_not_known_stays_as_it_is(changed: dict[str, Any], shape: dict[str, Any]):
    layers = Layers()
    model = layers.network(layers.conv(**changed), **shape)
    before = model.SerializeToString()

    assert rewrite(model) == 0
    assert model.SerializeToString() == before


def test_weights_that_are_an_input_stay_as_they_are():
    layers = Layers()
    model = layers.network(layers.conv())
    model.graph.input.append(networks.value(layers.weights[0].name, list(layers.weights[0].dims)))

    assert rewrite(model) == 0


def test_a_model_with_graphs_inside_stays_as_it_is():
    layers = Layers()
    y = layers.conv()
    branch = helper.make_graph([helper.make_node("Identity", [y], ["z"])], "branch", [], [networks.value("z", [])])
    layers.weights.append(networks.constant("yes", np.array(True)))
    model = layers.network(layers.add("If", "yes", then_branch=branch, else_branch=branch))

    assert rewrite(model) == 0


def test_names_of_the_model_are_not_taken():
    layers = Layers()
    y = layers.conv()
    layers.nodes[-1].output[0] = "winograd.0"
    layers.nodes.append(helper.make_node("Relu", ["winograd.0"], ["winograd_.1"]))

    assert y != "winograd.0"
    assert_same_answers(layers.network("winograd.0", "winograd_.1"), rewritten=1)
