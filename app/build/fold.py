"""The arithmetic of the recipe as the graph's first nodes: the engine then takes uint8 images as they are decoded.

uint8 (rows, height, width, channels) → Cast → Gather (colour order) → Transpose → Mul → Add → the model's input
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.build.reference import Runner
from app.domain.errors import FoldImpossible
from app.domain.preprocess import Color, Layout, Preprocess, normalised
from app.domain.tensors import DType, Shape, ShapeRange, Tensor, Tensors


def folded_recipe(recipe: Preprocess | None) -> Preprocess:
    """What is left of the recipe once the graph does the rest: decode and resize.

    Raises:
        FoldImpossible: there is no recipe, or it makes no float32.
    """
    if recipe is None or recipe.dtype is not DType.FLOAT32:
        found = "has no image input" if recipe is None else f"takes {recipe.dtype.value} images"
        raise FoldImpossible(
            f"fold_preprocess puts the recipe of a float32 image input into the graph; this model {found}.",
            hint="Leave fold_preprocess out, or give the recipe with the option preprocess.",
        )
    color = recipe.color if recipe.color is Color.GRAY else Color.BGR  # as decoded
    return replace(recipe, color=color, scale=1.0, mean=(0.0,), std=(1.0,), layout=Layout.NHWC, dtype=DType.UINT8)


def fold(model: onnx.ModelProto, recipe: Preprocess) -> None:
    """Put the recipe's arithmetic in front of the model's input, which keeps its name."""
    graph = model.graph
    (value,) = [value for value in graph.input if value.name == recipe.input]
    inner = f"{recipe.input}/normalised"
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == recipe.input:
                node.input[position] = inner
    nodes = _nodes(graph, recipe, inner)
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    dims = value.type.tensor_type.shape.dim
    rows = dims[0].dim_param or (dims[0].dim_value if dims[0].HasField("dim_value") else None)
    shape = [rows, recipe.height, recipe.width, recipe.channels]
    value.CopyFrom(helper.make_tensor_value_info(recipe.input, TensorProto.UINT8, shape))


def folded_range(limits: ShapeRange, layout: Layout) -> ShapeRange:
    """The range of the model's input as that of the folded one."""
    if layout is Layout.NHWC:
        return limits
    return ShapeRange(*(_channels_last(shape) for shape in (limits.min, limits.opt, limits.max)))


class FromPixels(Runner):
    """Asks a model that takes normalised rows about images as the folded engine takes them."""

    def __init__(self, runner: Runner, recipe: Preprocess) -> None:
        self._runner = runner
        self._recipe = recipe

    def run(self, inputs: Tensors) -> Tensors:
        images = inputs[self._recipe.input]
        if self._recipe.color is Color.GRAY:
            images = images[..., 0]
        return self._runner.run({self._recipe.input: np.stack([normalised(image, self._recipe) for image in images])})

    def close(self) -> None:
        self._runner.close()


def _nodes(graph: onnx.GraphProto, recipe: Preprocess, inner: str) -> list[onnx.NodeProto]:
    std = np.broadcast_to(np.asarray(recipe.std, np.float64), recipe.channels)
    mean = np.broadcast_to(np.asarray(recipe.mean, np.float64), recipe.channels)
    planar = recipe.layout is Layout.NCHW
    shape = (-1, 1, 1) if planar else (-1,)
    steps: list[tuple[str, Tensor | None, dict[str, Any]]] = [("Cast", None, {"to": TensorProto.FLOAT})]
    if recipe.color is Color.RGB:
        steps.append(("Gather", np.array([2, 1, 0], np.int64), {"axis": 3}))
    if planar:
        steps.append(("Transpose", None, {"perm": [0, 3, 1, 2]}))
    steps.append(("Mul", (recipe.scale / std).astype(np.float32).reshape(shape), {}))
    steps.append(("Add", (-mean / std).astype(np.float32).reshape(shape), {}))
    nodes, name = [], recipe.input
    for index, (operator, constant, attributes) in enumerate(steps):
        target = inner if index == len(steps) - 1 else f"{recipe.input}/{operator.lower()}"
        numbers: Sequence[str] = ()
        if constant is not None:
            numbers = (f"{target}/by",)
            graph.initializer.append(numpy_helper.from_array(constant, numbers[0]))
        nodes.append(helper.make_node(operator, [name, *numbers], [target], name=target, **attributes))
        name = target
    return nodes


def _channels_last(shape: Shape) -> Shape:
    return (shape[0], *shape[2:], shape[1])
