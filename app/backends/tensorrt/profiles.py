"""Which shapes an engine's optimisation profile allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.domain.errors import CompileFailed, ShapesContradict, ShapesNeeded
from app.domain.tensors import ANY, Shape, ShapeRange, shape_text


def profile_ranges(network: Any, asked: Mapping[str, ShapeRange], rows: int, *, dla: bool) -> dict[str, ShapeRange]:
    """A range for every dynamic input: what was asked for, else 1 to `rows` rows, best at 1.

    Args:
        dla: the profile is for a DLA core, which takes one shape only.

    Raises:
        ShapesNeeded: another axis than the first is open, and nothing was asked for.
        ShapesContradict: a range was asked of a DLA core.
    """
    found = {}
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        shape = tuple(tensor.shape)
        if tensor.is_shape_tensor:
            raise CompileFailed(
                f"The input {tensor.name!r} is a shape or an axis, which engines cannot take.",
                hint="Make it a constant of the network before the export.",
            )
        if ANY in shape:
            found[tensor.name] = asked.get(tensor.name) or _default(tensor.name, shape, 1 if dla else rows)
    for name, allowed in found.items():
        if dla and allowed.min != allowed.max:
            raise ShapesContradict(
                f"A DLA core takes one shape; {name!r} was asked to have {shape_text(allowed.min)} to"
                f" {shape_text(allowed.max)}.",
                hint="Give input_shapes alone, or leave dla_core out.",
            )
    return found


def _default(name: str, shape: Shape, rows: int) -> ShapeRange:
    if ANY in shape[1:]:
        filled = "x".join(str(length) if length != ANY else "N" for length in shape)
        raise ShapesNeeded(
            f"The input {name!r} is {shape_text(shape)} (-1 = any length), and TensorRT needs to know which lengths.",
            hint=f"Give the largest shape, with a number for every N: -F max_shapes={name}:{filled}; and opt_shapes for"
            " the usual one.",
        )
    one = (1, *shape[1:])
    return ShapeRange(one, one, (rows, *shape[1:]))
