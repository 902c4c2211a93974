"""Clients repeat their JSON headers: those of the Open Inference Protocol are read, checked and written once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from app.api import v2_tensors
from app.api.responses import Piece, raw
from app.api.v2_answers import encoded_pieces
from app.api.v2_codec import InferRequest, decoded
from app.domain.builds import EngineRecord
from app.domain.tensors import DType, Shape, Signature, Tensor, Tensors, TensorSpec

_REPEATED_BYTES_MAX = 1 << 14  # of a header that is kept for the next request


class Reader:
    """Reads requests as `v2_codec.decoded` does; one with the header and the length of the last is not parsed again."""

    def __init__(self) -> None:
        self._header = b""
        self._body_bytes = 0
        self._signature: Signature | None = None
        self._request: InferRequest | None = None
        self._places: list[_Place] = []

    def repeated(self, body: memoryview, header_bytes: int | None, signature: Signature) -> InferRequest | None:
        """The request of the last header and length, without its tensors; None: this is another."""
        if self._signature is not signature or self._body_bytes != len(body):
            return None
        return self._request if body[:header_bytes].tobytes() == self._header else None

    def tensors(self, body: memoryview) -> Tensors:
        """The inputs of a request that is `repeated`. Raises TensorRejected."""
        return {place.spec.name: place.tensor(body) for place in self._places}

    def decoded(self, body: memoryview, header_bytes: int | None, signature: Signature) -> InferRequest:
        if not header_bytes or header_bytes > _REPEATED_BYTES_MAX:
            return decoded(body, header_bytes, signature)
        if repeated := self.repeated(body, header_bytes, signature):
            return _with(repeated, self.tensors(body))
        request = decoded(body, header_bytes, signature)
        places = _places(request, body, signature)
        if places is not None:
            self._header, self._body_bytes = bytes(body[:header_bytes]), len(body)
            # Without the tensors, which would keep the body in memory.
            self._signature, self._request, self._places = signature, _with(request, {}), places
        return request


class Writer:
    """Writes answers as `v2_answers.encoded_pieces` does; where the last had the same form, its JSON is taken again."""

    def __init__(self) -> None:
        self._form: tuple[Any, ...] = ()
        self._text = b""

    def pieces(self, request: InferRequest, record: EngineRecord, outputs: Tensors) -> tuple[list[Piece], int | None]:
        tensors = [outputs[wanted.spec.name] for wanted in request.outputs]
        form = (record.name, record.version, request.outputs, [tensor.shape for tensor in tensors])
        is_bare = not request.id and not request.parameters
        if is_bare and form == self._form:
            return [self._text, *map(raw, tensors)], len(self._text)
        pieces, header_bytes = encoded_pieces(request, record, outputs)
        if is_bare and header_bytes and all(wanted.is_binary and not wanted.classes for wanted in request.outputs):
            self._form, self._text = form, bytes(pieces[0])
        return pieces, header_bytes


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the body."""

    spec: TensorSpec
    shape: Shape
    dtype: np.dtype[Any]
    start: int
    end: int

    def tensor(self, body: memoryview) -> Tensor:
        if self.spec.dtype is DType.BOOL:  # its bytes are looked at
            return v2_tensors.from_bytes(body[self.start : self.end], self.spec, self.shape)
        tensor: Tensor = np.ndarray(self.shape, self.dtype, body, self.start)
        return tensor if tensor.flags.aligned else tensor.copy()


def _places(request: InferRequest, body: memoryview, signature: Signature) -> list[_Place] | None:
    """Where the tensors lie in the body; None where one does not: it was JSON, an image, or not aligned."""
    if request.images:
        return None
    begin = _address(np.frombuffer(body, np.uint8))
    places = []
    for name, tensor in request.inputs.items():
        start = _address(tensor) - begin
        if not 0 <= start <= len(body) - tensor.nbytes:
            return None
        places.append(_Place(signature.input(name), tensor.shape, tensor.dtype, start, start + tensor.nbytes))
    return places


def _address(tensor: Tensor) -> int:
    return int(tensor.__array_interface__["data"][0])


def _with(request: InferRequest, inputs: Tensors) -> InferRequest:
    """The request with other tensors; `dataclasses.replace` takes three times as long."""
    return InferRequest(inputs, request.images, request.outputs, request.id, request.timeout_s, request.parameters)
