"""Inference requests and answers as gRPC messages: a header as in REST, and tensors raw or in typed contents."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.api import v2_answers, v2_codec, v2_tensors
from app.api.grpc import open_inference_pb2 as pb
from app.domain.errors import InvalidRequest, TensorRejected
from app.domain.tensors import Signature, Tensor
from app.serving.service import Answer

_CONTENTS = {  # of each datatype: the field of InferTensorContents, and the type of its elements
    "BOOL": ("bool_contents", np.bool_),
    "INT8": ("int_contents", np.int32),
    "INT16": ("int_contents", np.int32),
    "INT32": ("int_contents", np.int32),
    "INT64": ("int64_contents", np.int64),
    "UINT8": ("uint_contents", np.uint32),
    "UINT16": ("uint_contents", np.uint32),
    "UINT32": ("uint_contents", np.uint32),
    "UINT64": ("uint64_contents", np.uint64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    v2_tensors.BYTES: ("bytes_contents", np.object_),
}
_DTYPES = {datatype: dtype for dtype, datatype in v2_tensors.DATATYPES.items()}
# What REST has fields and headers for, and what asks for nothing that an answer does not have anyway.
_MEANINGLESS = {"binary_data_size", "triton_enable_empty_final_response"}


def decoded(message: Any, signature: Signature) -> v2_codec.InferRequest:
    """Read a ModelInferRequest. Raw tensors stay where they lie.

    Raises:
        InvalidRequest: it contradicts itself.
        TensorRejected: a tensor is not one that the engine takes or gives.
        FeatureUnsupported: shared memory.
    """
    raws: Sequence[bytes] = message.raw_input_contents
    if raws and len(raws) != len(message.inputs):
        raise InvalidRequest(
            f"The request has {len(message.inputs)} inputs and {len(raws)} raw_input_contents.",
            hint="Send one of raw_input_contents for each input, in their order, or typed contents for all.",
        )
    header = {
        "id": message.id,
        "parameters": _parameters(message.parameters),
        "inputs": [_input(tensor, raws[at] if raws else None) for at, tensor in enumerate(message.inputs)],
        "outputs": [{"name": wanted.name, "parameters": _parameters(wanted.parameters)} for wanted in message.outputs],
    }
    asked = v2_codec.from_header(header, memoryview(b""), signature, is_binary=True)
    if len({wanted.is_binary for wanted in asked.outputs}) > 1:
        raise InvalidRequest(
            "Some outputs are asked for as binary data and some are not.",
            hint="A gRPC answer holds raw_output_contents for every output or for none: give all the same binary_data.",
        )
    return asked


def encoded(asked: v2_codec.InferRequest, answer: Answer) -> Any:
    """Write a ModelInferResponse: raw, or in typed contents where the request asked for no binary data."""
    message = pb.ModelInferResponse(
        model_name=answer.engine.name, model_version=str(answer.engine.version), id=asked.id or ""
    )
    for name, value in asked.parameters.items():
        set_parameter(message, name, value)
    for wanted in asked.outputs:
        entry, blob = v2_answers.output_entry(wanted, answer.outputs[wanted.spec.name], answer.engine)
        tensor = message.outputs.add(name=entry["name"], datatype=entry["datatype"], shape=entry["shape"])
        if blob is not None:
            message.raw_output_contents.append(blob.tobytes())
        else:
            _fill(tensor.contents, entry["datatype"], entry["data"])
    return message


def timeout_s(message: Any) -> float | None:
    """The request's `timeout` parameter, which is in microseconds; None or 0: none.

    Raises:
        InvalidRequest: it is no length of time.
    """
    if "timeout" not in message.parameters:
        return None
    value = _parameter(message.parameters["timeout"], "timeout")
    if type(value) is not int or value < 0:
        raise InvalidRequest("The timeout is not a number of microseconds.", hint="Send a whole number of at least 0.")
    return value / 1e6 or None


def set_parameter(message: Any, name: str, value: str | bool | int | float) -> None:
    """Add a parameter to an answer."""
    if isinstance(value, bool):
        message.parameters[name].bool_param = value
    elif isinstance(value, str):
        message.parameters[name].string_param = value
    elif isinstance(value, float):
        message.parameters[name].double_param = value
    elif value < 1 << 63:
        message.parameters[name].int64_param = value
    else:
        message.parameters[name].uint64_param = value


def _parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _parameter(value, name) for name, value in fields.items() if name not in _MEANINGLESS}


def _parameter(value: Any, name: str) -> Any:
    choice = value.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidRequest(
            f"The parameter {name[:80]!r} has no value.", hint="Set one of its fields, or leave it out."
        )
    return getattr(value, choice)


def _input(tensor: Any, raw: bytes | None) -> dict[str, Any]:
    """An input as a header has it, its data as bytes."""
    shape = list(tensor.shape)
    if raw is None:
        data = _packed(tensor)
    elif tensor.HasField("contents"):
        raise InvalidRequest(
            f"The input {tensor.name[:80]!r} has both contents and raw_input_contents.", hint="Send one of them."
        )
    else:
        data = raw
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": shape,
        "parameters": _parameters(tensor.parameters),
        "data": memoryview(data),
    }


def _packed(tensor: Any) -> bytes:
    """The typed contents as the bytes that raw contents would be."""
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if not filled:
        return b""
    name = tensor.name[:80]
    field, held = _CONTENTS.get(tensor.datatype, ("", np.object_))
    if filled != [field]:
        raise TensorRejected(
            f"The input {name!r} is {tensor.datatype[:20]!r} and has {' and '.join(filled)}.",
            hint=f"Send it in {field}, or raw." if field else "Send it in raw_input_contents.",
        )
    values = getattr(tensor.contents, field)
    if field == "bytes_contents":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return _narrowed(np.fromiter(values, held, len(values)), tensor.datatype, name).tobytes()


def _narrowed(values: Tensor, datatype: str, name: str) -> Tensor:
    """The values in the datatype itself; contents carry small integers in 32 bits."""
    narrow = values.astype(_DTYPES[datatype].numpy)
    if narrow.dtype.kind in "iu" and not np.array_equal(narrow, values):
        raise TensorRejected(f"The input {name!r} has values that {datatype} cannot hold.", hint="Check the values.")
    return narrow


def _fill(contents: Any, datatype: str, data: Tensor | list[str]) -> None:
    field, _ = _CONTENTS[datatype]
    values = [text.encode() for text in data] if isinstance(data, list) else data.tolist()
    getattr(contents, field).extend(values)
