"""What a TorchScript graph tells of its inputs: the first layer that each reaches knows channels or features.

Works on the graph's own objects; imports nothing of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.domain.tensors import DType

SIDE = -2  # an axis of any length, the same for height and width
LENGTH = -3  # an axis of any length, of a sequence
ROWS = 1

_DEPTH_MAX = 10_000  # values looked at for one input


@dataclass(frozen=True)
class Clue:
    axes: tuple[int, ...]  # lengths, or SIDE, LENGTH
    dtype: DType
    below: int = 2  # what integers must be smaller than


def clues(graph: Any, module: Any) -> list[Clue | None]:
    """In the order of the inputs; None for one that no known layer takes."""
    copies = _copies(graph)
    return [_first_clue(value, copies, module) for value in list(graph.inputs())[1:]]


def _first_clue(start: Any, copies: dict[str, list[Any]], module: Any) -> Clue | None:
    """Breadth first: the nearest layer decides."""
    waiting, seen = [start], {start.debugName()}
    for value in waiting:
        for use in value.uses():
            node = use.user
            with suppress(RuntimeError, AttributeError, TypeError, IndexError, KeyError):
                clue = _LAYERS[node.kind()](node, module) if node.kind() in _LAYERS and use.offset in _DATA else None
                if clue is not None:
                    return clue
            if node.kind() in _PASSING and len(waiting) < _DEPTH_MAX:
                _add(waiting, seen, list(node.outputs()))
        _add(waiting, seen, copies.get(value.debugName(), []))
    return None


def _add(waiting: list[Any], seen: set[str], values: list[Any]) -> None:
    for value in values:
        if value.debugName() not in seen:
            seen.add(value.debugName())
            waiting.append(value)


def _copies(graph: Any) -> dict[str, list[Any]]:
    """Values that leave a branch under another name: what `prim::If` hands out."""
    copies: dict[str, list[Any]] = {}
    for node in _nodes(graph):
        if node.kind() == "prim::If":
            for block in node.blocks():
                for inside, outside in zip(block.outputs(), node.outputs(), strict=True):
                    copies.setdefault(inside.debugName(), []).append(outside)
    return copies


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _convolution(groups_at: int) -> Callable[[Any, Any], Clue]:
    def clue(node: Any, module: Any) -> Clue:
        inputs = list(node.inputs())
        weight, groups = _constant(inputs[1], module), _constant(inputs[groups_at], module)
        return Clue((ROWS, weight.shape[1] * groups, *[SIDE] * (weight.dim() - 2)), _dtype(weight))

    return clue


def _transposed(groups_at: int) -> Callable[[Any, Any], Clue]:
    def clue(node: Any, module: Any) -> Clue:
        weight = _constant(list(node.inputs())[1], module)
        return Clue((ROWS, weight.shape[0], *[SIDE] * (weight.dim() - 2)), _dtype(weight))

    return clue


def _any_convolution(node: Any, module: Any) -> Clue:
    is_transposed = _constant(list(node.inputs())[6], module)
    return (_transposed if is_transposed else _convolution)(8)(node, module)


def _linear(node: Any, module: Any) -> Clue:
    weight = _constant(list(node.inputs())[1], module)
    return Clue((ROWS, weight.shape[-1]), _dtype(weight))


def _product(weight_at: int) -> Callable[[Any, Any], Clue]:
    def clue(node: Any, module: Any) -> Clue:
        weight = _constant(list(node.inputs())[weight_at], module)
        return Clue((ROWS, weight.shape[-2]), _dtype(weight))

    return clue


def _embedding(node: Any, module: Any) -> Clue:
    return Clue((ROWS, LENGTH), DType.INT64, below=_constant(next(iter(node.inputs())), module).shape[0])


def _recurrent(node: Any, module: Any) -> Clue:
    weight = _constant(list(node.inputs())[2], module)[0]
    return Clue((ROWS, LENGTH, weight.shape[1]), _dtype(weight))


def _batch_norm(node: Any, module: Any) -> Clue:
    weight = _constant(list(node.inputs())[1], module)
    return Clue((ROWS, weight.shape[0], SIDE, SIDE), _dtype(weight))


_LAYERS: dict[str, Callable[[Any, Any], Clue]] = {
    **{f"aten::conv{n}d": _convolution(6) for n in (1, 2, 3)},
    **{f"aten::conv_transpose{n}d": _transposed(6) for n in (1, 2, 3)},
    "aten::_convolution": _any_convolution,
    "aten::linear": _linear,
    "aten::addmm": _product(2),
    "aten::mm": _product(1),
    "aten::matmul": _product(1),
    "aten::embedding": _embedding,
    "aten::lstm": _recurrent,
    "aten::gru": _recurrent,
    "aten::batch_norm": _batch_norm,
}
_DATA = (0, 1)  # where these layers take their data; their weights are constants and lead nowhere
# Operators whose answer has the channels and features of what they are given.
_PASSING = frozenset(
    {"prim::unchecked_cast"}
    | {f"aten::{name}" for name in ("add", "sub", "mul", "div", "rsub", "neg", "abs", "pow", "sqrt", "clamp", "to")}
    | {f"aten::{name}" for name in ("add_", "sub_", "mul_", "div_", "float", "half", "double", "type_as", "expand_as")}
    | {f"aten::{name}" for name in ("clamp_min", "clamp_max", "contiguous", "clone", "detach", "alias", "lift_fresh")}
    | {f"aten::{name}" for name in ("relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "silu_", "sigmoid")}
    | {f"aten::{name}" for name in ("hardtanh", "hardtanh_", "hardswish", "hardsigmoid", "tanh", "softmax", "dropout")}
    | {f"aten::{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)}
    | {f"aten::{name}" for name in ("upsample_nearest2d", "upsample_bilinear2d", "pad", "constant_pad_nd", "unsqueeze")}
    | {f"aten::{name}" for name in ("instance_norm", "group_norm", "layer_norm", "flatten", "dropout_")}
)


def _constant(value: Any, module: Any) -> Any:
    """A weight or number of the graph, as it is in the module.

    Raises:
        KeyError: it is computed.
    """
    node = value.node()
    if node.kind() == "prim::GetAttr":
        return getattr(_constant(next(iter(node.inputs())), module), node.s("name"))
    if node.kind() == "prim::Constant":
        return value.toIValue()
    if node.kind() == "aten::t":
        return _constant(next(iter(node.inputs())), module).t()
    if node.kind() == "prim::ListConstruct":
        return [_constant(item, module) for item in node.inputs()]
    if node.kind() == "prim::Param":
        return module
    raise KeyError(node.kind())


def _dtype(weight: Any) -> DType:
    name = str(weight.dtype).removeprefix("torch.")
    return DType(name) if name in ("float16", "float64") else DType.FLOAT32
