"""Requests of the Open Inference Protocol as the unit tests make them, and the engine that they fit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import strategies as st
from tritonclient.http import InferInput

from app.api import v2_codec, v2_tensors
from app.domain.tensors import ANY, DType, Signature, TensorSpec

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def signature(dtype: DType = DType.FLOAT32, *, rows_max: int = 4) -> Signature:
    """Inputs x and output y of any shape (rows, columns)."""
    return Signature((TensorSpec("x", dtype, (ANY, ANY)),), (TensorSpec("y", dtype, (ANY, ANY)),), {}, rows_max)


def of_specs(*specs: TensorSpec) -> Signature:
    return Signature(specs, specs, {}, 1)


def entry(**changes: Any) -> dict[str, Any]:
    """A JSON input that fits `signature()`; a change to None leaves the field out."""
    fields = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": X.tolist(), **changes}
    return {name: value for name, value in fields.items() if value is not None}


def binary_entry(size: Any = X.nbytes, **changes: Any) -> dict[str, Any]:
    return entry(data=None, parameters={"binary_data_size": size}, **changes)


def read(header: Any, binary: bytes | None = None, *, of: Signature | None = None) -> v2_codec.InferRequest:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = memoryview(text + (binary or b""))
    return v2_codec.decoded(body, None if binary is None else len(text), of or signature())


def triton_input(tensor: np.ndarray, datatype: str, *, binary: bool = True, name: str = "x") -> InferInput:
    made = InferInput(name, list(tensor.shape), datatype)
    made.set_data_from_numpy(tensor, binary_data=binary)
    return made


NUMPY_TYPES = st.sampled_from(sorted(v2_tensors.DATATYPES, key=str))
