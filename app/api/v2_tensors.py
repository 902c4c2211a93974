"""Tensors as the Open Inference Protocol writes them: datatypes, bytes, JSON values, classification strings."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from app.api.tensors import from_lists
from app.domain.errors import InvalidRequest, TensorRejected
from app.domain.tensors import ANY, DType, Shape, Signature, Tensor, TensorSpec, described, shape_text
from app.serving.answers import check_predictions

BYTES = "BYTES"  # of inputs: encoded images; of outputs: classification strings
DATATYPES: dict[DType, str] = {
    DType.BOOL: "BOOL",
    DType.UINT8: "UINT8",
    DType.UINT16: "UINT16",
    DType.UINT32: "UINT32",
    DType.UINT64: "UINT64",
    DType.INT8: "INT8",
    DType.INT16: "INT16",
    DType.INT32: "INT32",
    DType.INT64: "INT64",
    DType.FLOAT16: "FP16",
    DType.FLOAT32: "FP32",
    DType.FLOAT64: "FP64",
}
IMAGES_MAX = 1000  # in one request
_LENGTH_BYTES = 4  # in front of each element of a BYTES tensor
_RANK_MAX = 32


def checked_shape(value: Any, name: str) -> Shape:
    """The shape of a request's tensor.

    Raises:
        InvalidRequest: not a list of lengths.
    """
    if (
        not isinstance(value, list)
        or len(value) > _RANK_MAX
        or any(type(length) is not int or length < 0 for length in value)
    ):
        raise _bad_shape(name)
    return tuple(value)


def check_datatype(datatype: Any, spec: TensorSpec) -> None:
    """Refuse a datatype that is not the input's.

    Raises:
        TensorRejected: it is another, or none.
    """
    wanted = DATATYPES[spec.dtype]
    if datatype == wanted:
        return
    found = repr(datatype[:20]) if isinstance(datatype, str) else "missing"
    raise TensorRejected(
        f"The datatype of input {spec.name!r} is {found}; the engine wants {wanted}.",
        hint=f"No engine has tensors of BF16; convert them to {wanted}."
        if datatype == "BF16"
        else f"Convert the tensor to {wanted}, or send encoded images as BYTES to an engine with a recipe.",
    )


def from_bytes(data: memoryview, spec: TensorSpec, shape: Shape) -> Tensor:
    """The tensor that lies in these bytes, little-endian, in C order. Copied only when they are not aligned.

    Raises:
        TensorRejected: the bytes are not as many as the shape needs, or are no booleans.
    """
    dtype = spec.dtype.numpy
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise TensorRejected(
            f"The input {spec.name!r} has {len(data)} bytes; shape {shape_text(shape)} of {DATATYPES[spec.dtype]}"
            f" takes {wanted}.",
            hint="Check the shape, the datatype and binary_data_size.",
        )
    if spec.dtype is DType.BOOL and (np.frombuffer(data, np.uint8) > 1).any():
        raise TensorRejected(f"The input {spec.name!r} has bytes other than 0 and 1.", hint="BOOL is one byte, 0 or 1.")
    tensor = _reshaped(np.frombuffer(data, dtype), shape, spec.name)
    return tensor if tensor.flags.aligned else tensor.copy()


def from_json(values: Any, spec: TensorSpec, shape: Shape) -> Tensor:
    """The tensor that these JSON values describe; flat or nested, only their number and order count.

    Raises:
        TensorRejected: their number is not that of the shape, or the datatype cannot hold them.
    """
    if not isinstance(values, list):
        raise InvalidRequest(f"The data of input {spec.name!r} is not a list.", hint="Send a flat or nested list.")
    if spec.dtype is DType.FLOAT16:
        raise TensorRejected(
            f"The input {spec.name!r} is FP16, which travels as binary data only.", hint="Send it as binary data."
        )
    tensor = from_lists(values, spec)
    if tensor.size != math.prod(shape):
        raise TensorRejected(
            f"The input {spec.name!r} has {tensor.size} values; shape {shape_text(shape)} takes {math.prod(shape)}.",
            hint="Check the shape.",
        )
    return _reshaped(tensor, shape, spec.name)


def images_from_bytes(data: memoryview, shape: Shape, name: str) -> list[memoryview]:
    """The elements of a BYTES tensor of shape [n] or [n, 1]: encoded images.

    Raises:
        TensorRejected: another shape, too many, or lengths that do not add up.
    """
    if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)) or not 1 <= shape[0] <= IMAGES_MAX:
        raise TensorRejected(
            f"The images in input {name!r} have shape {shape_text(shape)}.",
            hint=f"Encoded images are a BYTES tensor of shape [n] or [n, 1], n from 1 to {IMAGES_MAX}.",
        )
    images: list[memoryview] = []
    at = 0
    while at + _LENGTH_BYTES <= len(data) and len(images) < shape[0]:
        (length,) = struct.unpack_from("<I", data, at)
        at += _LENGTH_BYTES
        images.append(data[at : at + length])
        at += length
    if at != len(data) or len(images) != shape[0]:
        raise TensorRejected(
            f"The {len(data)} bytes of input {name!r} are not {shape[0]} elements with their lengths.",
            hint="Each element of a BYTES tensor is 4 bytes of length, little-endian, and that many bytes.",
        )
    return images


def from_raw_body(body: memoryview, signature: Signature) -> Tensor:
    """A body that is nothing but the bytes of the only input; its open length follows from their number.

    Raises:
        TensorRejected: the engine has several inputs, or the bytes do not fit its shape.
    """
    if len(signature.inputs) != 1:
        raise TensorRejected(
            f"A raw body carries one tensor; the engine has {len(signature.inputs)} inputs.",
            hint=f"Send a JSON header with every input: {described(signature.inputs) or 'none'}.",
        )
    spec = signature.inputs[0]
    shape = list(spec.shape)
    if shape.count(ANY) > 1 and signature.rows_max > 1:
        shape[0] = 1
    if shape.count(ANY) > 1:
        raise TensorRejected(
            f"The input {spec.name!r} is {shape_text(spec.shape)}: its shape does not follow from the number of bytes.",
            hint="Send it with a JSON header that gives the shape.",
        )
    known = spec.dtype.numpy.itemsize * math.prod(length for length in shape if length != ANY)
    return from_bytes(body, spec, tuple(max(1, len(body) // max(1, known)) if n == ANY else n for n in shape))


def classified(output: Tensor, classes: int, labels: Sequence[str], *, by_row: bool) -> tuple[Shape, list[str]]:
    """The best classes as `score:index` or `score:index:label`, best first; of equal scores, the lower index first.

    Args:
        classes: at least 1; more than there are means all.
        by_row: axis 0 is a batch axis: the best of each row; else the best of the whole tensor.

    Returns:
        Shape (rows, classes) or (classes,), and that many strings in C order.

    Raises:
        InvalidRequest: they are more than an answer may name.

    Source: Triton's classification extension; scores as C's %f.
    """
    rows = output.reshape(len(output), math.prod(output.shape[1:])) if by_row else output.reshape(1, output.size)
    check_predictions(len(rows), min(classes, rows.shape[1]))
    keys = -rows if rows.dtype.kind == "f" else ~rows  # ~ turns the order of integers round and cannot overflow
    order = np.argsort(keys, axis=1, kind="stable")[:, :classes]
    texts = [
        _class_text(row[index], int(index), labels) for row, best in zip(rows, order, strict=True) for index in best
    ]
    return (order.shape if by_row else (order.shape[1],)), texts


def bytes_tensor(elements: Sequence[str]) -> bytes:
    """The elements as the data of a BYTES tensor."""
    encoded = [element.encode() for element in elements]
    return b"".join(struct.pack("<I", len(element)) + element for element in encoded)


def _class_text(score: Any, index: int, labels: Sequence[str]) -> str:
    value = f"{score:f}" if score.dtype.kind == "f" else str(int(score))
    return f"{value}:{index}:{labels[index]}" if index < len(labels) else f"{value}:{index}"


def _reshaped(tensor: Tensor, shape: Shape, name: str) -> Tensor:
    try:
        return tensor.reshape(shape)
    except ValueError as error:  # no elements, yet lengths that no array can have
        raise _bad_shape(name) from error


def _bad_shape(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"The shape of input {name[:80]!r} is not one that a tensor can have.",
        hint="A shape is a list of lengths, as in [1, 3, 224, 224].",
    )
