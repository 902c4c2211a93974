"""Inference requests of the Open Inference Protocol: a JSON header, then the binary tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from app.api import v2_tensors
from app.api.tensors import check_json_size
from app.domain.errors import FeatureUnsupported, InvalidRequest, TensorRejected
from app.domain.tensors import DType, Signature, Tensor, Tensors, TensorSpec, described

_NAME_MAX = 1000  # characters; names are repeated in messages
# What the protocol gives a meaning; the others are the client's own and come back with the answer.
_RESERVED = {"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout"}


@dataclass(frozen=True)
class WantedOutput:
    spec: TensorSpec
    is_binary: bool
    classes: int  # 0: the tensor itself; else that many classification strings


@dataclass(frozen=True)
class InferRequest:
    inputs: Tensors  # empty when images are sent
    images: list[memoryview]  # encoded; empty when tensors are sent
    outputs: list[WantedOutput]  # in the order in which they are answered
    id: str | None = None
    timeout_s: float | None = None  # for the answer; None: as long as it takes
    parameters: Mapping[str, Any] = field(default_factory=dict)  # the client's own


def header_length(text: str | None) -> int | None:
    """The value of Inference-Header-Content-Length; None when there is none: the whole body is JSON.

    Raises:
        InvalidRequest: it is no length.
    """
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise InvalidRequest(
            f"Inference-Header-Content-Length is {text[:40]!r}.", hint="Send the number of bytes of the JSON header."
        )
    return int(text)


def decoded(body: memoryview, header_bytes: int | None, signature: Signature) -> InferRequest:
    """Read an inference request. Binary tensors stay where they lie in the body.

    Args:
        header_bytes: length of the JSON; None: all is JSON; 0: the body is one raw tensor.

    Raises:
        InvalidRequest: the JSON is not such a request, or the lengths in it do not add up to the body's.
        TensorRejected: a tensor is not one that the engine takes or gives.
        FeatureUnsupported: shared memory.
    """
    if header_bytes == 0:
        tensor = v2_tensors.from_raw_body(body, signature)
        every = [WantedOutput(spec, True, 0) for spec in signature.outputs]
        return InferRequest({signature.inputs[0].name: tensor}, [], every)
    return from_header(_header(body, header_bytes), body[header_bytes:] if header_bytes else body[:0], signature)


def from_header(
    header: dict[str, Any], blobs: memoryview, signature: Signature, *, is_binary: bool = False
) -> InferRequest:
    """Read an inference request whose header is parsed.

    Args:
        header: as in JSON; the data of an input may also be a memoryview of the tensor's bytes.
        blobs: the binary tensors, one after another.
        is_binary: whether an output is binary when neither it nor the request says so.

    Raises:
        As `decoded`.
    """
    parameters = _parameters(header, "request")
    id_ = header.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise _malformed("the id is not a string")
    outputs = _wanted(header, _flag(parameters, "binary_data_output", is_binary), signature)
    inputs, images = _inputs(header, _Blobs(blobs), signature)
    own = {name: value for name, value in parameters.items() if name not in _RESERVED}
    return InferRequest(inputs, images, outputs, id_, _timeout_s(parameters), own)


class _Blobs:
    """The binary part of a body, handed out from its start."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def take(self, size: int, name: str) -> memoryview:
        if size > len(self._data):
            raise InvalidRequest(
                f"binary_data_size of input {name!r} is {size}; the body holds {len(self._data)} bytes more.",
                hint="Put the tensors behind the JSON header in the order of the inputs, and send the header's length"
                " as Inference-Header-Content-Length.",
            )
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def check_empty(self) -> None:
        if len(self._data):
            raise InvalidRequest(
                f"{len(self._data)} bytes are left over behind the last tensor.",
                hint="The sum of all binary_data_size must be the length of the body without its JSON header.",
            )


def _header(body: memoryview, header_bytes: int | None) -> dict[str, Any]:
    size = len(body) if header_bytes is None else header_bytes
    if size > len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length is {size}, the body {len(body)} bytes.",
            hint="It counts the bytes of the JSON header, before any compression.",
        )
    check_json_size(size, "binary tensors")
    try:
        header = orjson.loads(body[:size])
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"The header is not JSON: {error}.",
            hint="NaN and Infinity have no form in JSON: send binary tensors. Before those, send the header's length"
            " as Inference-Header-Content-Length.",
        ) from error
    if not isinstance(header, dict):
        raise _malformed("it is not an object")
    return header


def _parameters(holder: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict) or any(
        not isinstance(value, str | bool | int | float) for value in parameters.values()
    ):
        raise _malformed(f"the parameters of the {what} are not strings, numbers or booleans by name")
    if "shared_memory_region" in parameters:
        raise FeatureUnsupported("Shared memory is not supported.", hint="Send and receive tensors in the body.")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise _malformed(f"{name} is not a boolean")
    return value


def _count(parameters: Mapping[str, Any], name: str) -> int | None:
    value = parameters.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise _malformed(f"{name} is not a whole number of at least 0")
    return value


def _timeout_s(parameters: Mapping[str, Any]) -> float | None:
    return (_count(parameters, "timeout") or 0) / 1e6 or None  # it is in microseconds, as Triton's; 0 is none


def _entries(header: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """The inputs or outputs of a request by name, each once."""
    found = header.get(key, [])
    if not isinstance(found, list):
        raise _malformed(f"{key} is not a list")
    entries: dict[str, dict[str, Any]] = {}
    for entry in found:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or len(name) > _NAME_MAX:
            raise _malformed(f"one of the {key} has no name")
        if name in entries:
            raise _malformed(f"{name[:80]!r} appears twice among the {key}")
        entries[name] = entry
    return entries


def _inputs(header: dict[str, Any], blobs: _Blobs, signature: Signature) -> tuple[Tensors, list[memoryview]]:
    """The tensors by name, or the images where the input is BYTES."""
    tensors: Tensors = {}
    images: list[memoryview] = []
    entries = _entries(header, "inputs")
    for name, entry in entries.items():
        spec = signature.input(name)
        if entry.get("datatype") == v2_tensors.BYTES:
            images = _images(entry, name, blobs)
        else:
            tensors[name] = _tensor(entry, spec, blobs)
    blobs.check_empty()
    if images and len(entries) > 1:
        raise TensorRejected(
            "Encoded images were sent together with other inputs.",
            hint=f"Send images to an engine with one input; this one's are: {described(signature.inputs)}.",
        )
    return tensors, images


def _tensor(entry: dict[str, Any], spec: TensorSpec, blobs: _Blobs) -> Tensor:
    v2_tensors.check_datatype(entry.get("datatype"), spec)
    shape = v2_tensors.checked_shape(entry.get("shape"), spec.name)
    data = _data(entry, spec.name, blobs)
    if isinstance(data, memoryview):
        return v2_tensors.from_bytes(data, spec, shape)
    return v2_tensors.from_json(data, spec, shape)


def _images(entry: dict[str, Any], name: str, blobs: _Blobs) -> list[memoryview]:
    shape = v2_tensors.checked_shape(entry.get("shape"), name)
    data = _data(entry, name, blobs)
    if isinstance(data, memoryview):
        return v2_tensors.images_from_bytes(data, shape, name)
    raise TensorRejected(
        f"The input {name!r} is BYTES in JSON, which carries text only.",
        hint="Send encoded images as binary data.",
    )


def _data(entry: dict[str, Any], name: str, blobs: _Blobs) -> Any:
    """What an input brings: a memoryview of its binary data, or its JSON values."""
    size = _count(_parameters(entry, f"input {name[:80]!r}"), "binary_data_size")
    if (size is None) == ("data" not in entry):
        raise _malformed(f"the input {name[:80]!r} has either data or binary_data_size")
    return entry["data"] if size is None else blobs.take(size, name)


def _wanted(header: dict[str, Any], binary_by_default: bool, signature: Signature) -> list[WantedOutput]:
    entries = _entries(header, "outputs") or {spec.name: {} for spec in signature.outputs}
    return [_wanted_output(name, entry, binary_by_default, signature) for name, entry in entries.items()]


def _wanted_output(name: str, entry: dict[str, Any], binary_by_default: bool, signature: Signature) -> WantedOutput:
    spec = next((spec for spec in signature.outputs if spec.name == name), None)
    if spec is None:
        raise TensorRejected(
            f"The engine has no output named {name[:80]!r}.", hint=f"Its outputs are: {described(signature.outputs)}."
        )
    parameters = _parameters(entry, f"output {name[:80]!r}")
    wanted = WantedOutput(
        spec,
        _flag(parameters, "binary_data", binary_by_default),
        _count(parameters, "classification") or 0,
    )
    if spec.dtype is DType.FLOAT16 and not (wanted.is_binary or wanted.classes):
        raise TensorRejected(
            f"The output {name!r} is FP16, which travels as binary data only.",
            hint='Ask for it as binary data: "parameters": {"binary_data": true}.',
        )
    return wanted


def _malformed(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"The inference request is malformed: {why[:200]}.",
        hint='Send {"inputs": [{"name": …, "datatype": …, "shape": […], "data": […]}]}.',
    )
