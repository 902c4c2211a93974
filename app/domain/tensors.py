"""Element types, tensor descriptions, and the check of tensors against an engine's signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import TensorRejected

Tensor: TypeAlias = NDArray[Any]
Tensors: TypeAlias = dict[str, Tensor]
Shape: TypeAlias = tuple[int, ...]

ANY = -1  # in a shape: any length ≥ 0


class DType(str, Enum):
    """Element types that an engine's inputs and outputs can have; the values are numpy's names."""

    BOOL = "bool"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @cached_property  # several times for every request
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype, little-endian as on every device that this service runs on."""
        return np.dtype(self.value)

    @property
    def is_float(self) -> bool:
        return self.value.startswith("float")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine."""

    name: str
    dtype: DType
    shape: Shape  # -1 = any length; () = scalar

    def fits(self, shape: Shape) -> bool:
        """Whether a tensor of this shape has the described rank and fixed lengths."""
        return len(shape) == len(self.shape) and all(
            want in (ANY, have) for want, have in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class ShapeRange:
    """Lengths that one input may have, axis by axis: min ≤ opt ≤ max."""

    min: Shape
    opt: Shape
    max: Shape

    def holds(self, shape: Shape) -> bool:
        return len(shape) == len(self.min) and all(
            low <= have <= high for low, have, high in zip(self.min, shape, self.max, strict=True)
        )


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs in the model's order, and how many rows may be joined into one run.

    `ranges` limits the dynamic inputs further (an engine's optimisation profile); an input without an entry
    takes every shape that its spec admits. `rows_max` > 1 says that axis 0 of every input and output is a batch
    axis, proven row by row during the build; 1 says that requests are never joined.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, ShapeRange] = field(default_factory=dict)
    rows_max: int = 1

    @property
    def is_classifier(self) -> bool:
        """Whether there is one floating output of shape (rows, classes) with at least two classes."""
        if len(self.outputs) != 1 or not self.outputs[0].dtype.is_float:
            return False
        shape = self.outputs[0].shape
        return len(shape) == 2 and (shape[1] > 1 or shape[1] == ANY)

    def input(self, name: str) -> TensorSpec:
        """The input of that name.

        Raises:
            TensorRejected: there is none.
        """
        for spec in self.inputs:
            if spec.name == name:
                return spec
        raise TensorRejected(
            f"The engine has no input named {name!r}.", hint=f"Its inputs are: {described(self.inputs)}."
        )


def described(specs: tuple[TensorSpec, ...]) -> str:
    """The specs for a person, as in `image float32 -1x3x224x224, mask bool 5`."""
    return ", ".join(f"{spec.name} {spec.dtype.value} {shape_text(spec.shape)}" for spec in specs)


def shape_text(shape: Shape) -> str:
    """A shape as trtexec writes it: `1x3x224x224`; a scalar is `scalar`."""
    return "x".join(str(length) for length in shape) or "scalar"


def named_inputs(inputs: Mapping[str, Tensor], signature: Signature) -> Mapping[str, Tensor]:
    """The inputs, with the name of the only one in place of "".

    Raises:
        TensorRejected: there is no only one.
    """
    if "" not in inputs:
        return inputs
    if len(inputs) != 1 or len(signature.inputs) != 1:
        raise TensorRejected(
            "A tensor without a name was sent, but the engine's inputs need names.",
            hint=f"Name every tensor: {described(signature.inputs)}.",
        )
    return {signature.inputs[0].name: inputs[""]}


def check_inputs(tensors: Mapping[str, Tensor], signature: Signature) -> None:
    """Refuse tensors that the engine cannot take.

    Raises:
        TensorRejected: an input is missing, unknown, or of another dtype or shape; or, where axis 0 is a batch
            axis, the inputs have no rows or differ in them.
    """
    for name in tensors:
        signature.input(name)
    for spec in signature.inputs:
        if spec.name not in tensors:
            raise TensorRejected(
                f"The input {spec.name!r} is missing.", hint=f"Send every input: {described(signature.inputs)}."
            )
        _check(tensors[spec.name], spec, signature.ranges.get(spec.name))
    if signature.rows_max > 1:
        _check_rows({spec.name: tensors[spec.name].shape[0] for spec in signature.inputs})


def warm_up_inputs(signature: Signature, rows: int | None = None) -> Tensors:
    """Inputs of the shape that the engine is best at, else of the smallest that its signature admits.

    All ones: as divisor and as index they do less harm than zeros.

    Args:
        rows: where axis 0 is a batch axis: its length; None: as above.
    """
    shapes = {spec.name: tuple(1 if length == ANY else length for length in spec.shape) for spec in signature.inputs}
    shapes.update({name: allowed.opt for name, allowed in signature.ranges.items()})
    if rows is not None and signature.rows_max > 1:
        shapes = {name: (rows, *shape[1:]) for name, shape in shapes.items()}
    return {spec.name: np.ones(shapes[spec.name], spec.dtype.numpy) for spec in signature.inputs}


def _check(tensor: Tensor, spec: TensorSpec, allowed: ShapeRange | None) -> None:
    if tensor.dtype != spec.dtype.numpy:
        raise TensorRejected(
            f"The input {spec.name!r} has dtype {_dtype_text(tensor.dtype)}; the engine wants {spec.dtype.value}.",
            hint=f"Convert it before sending, for example with numpy's astype('{spec.dtype.value}').",
        )
    if not spec.fits(tensor.shape):
        raise TensorRejected(
            f"The input {spec.name!r} has shape {shape_text(tensor.shape)}; the engine wants {shape_text(spec.shape)}"
            " (-1 = any length).",
            hint="Reshape or resize the tensor, or build the engine for this shape.",
        )
    if allowed is not None and not allowed.holds(tensor.shape):
        raise TensorRejected(
            f"The input {spec.name!r} has shape {shape_text(tensor.shape)}; the engine was built for"
            f" {shape_text(allowed.min)} to {shape_text(allowed.max)}.",
            hint="Split the request, or build the engine with max_shapes that include this one.",
        )


def _check_rows(rows: Mapping[str, int]) -> None:
    # Inputs that differ in rows might broadcast, and joined with other requests they would spoil the answers of all.
    if len(set(rows.values())) > 1 or 0 in rows.values():
        counts = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise TensorRejected(
            f"The inputs' rows (lengths along axis 0) are: {counts}.",
            hint="Send the same number of rows, at least 1, for every input.",
        )


def _dtype_text(dtype: np.dtype[Any]) -> str:
    return dtype.name if dtype.isnative else f"{dtype.name} in foreign byte order"
