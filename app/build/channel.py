"""Messages between a build process and a confined child: JSON objects with tensors, never pickles.

A frame is the lengths of its two parts (4 and 8 bytes, little-endian), a JSON object, and the bytes of the tensors
that the object names in `tensors`. Whoever reads a confined child's frames must trust nothing in them.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from math import prod
from typing import Any

import numpy as np

from app.domain.tensors import DType, Tensors

_LENGTHS = struct.Struct("<IQ")
_JSON_BYTES_MAX = 4 << 20
_TENSOR_BYTES_MAX = 2 << 30  # of all tensors of one message
_PIECE_BYTES = 1 << 20
_AXES_MAX = 32

Message = dict[str, Any]


class ChannelBroken(Exception):
    """The other side has ended, or wrote what is no frame."""


class ChannelTimedOut(Exception):
    """No whole frame arrived in time."""


class Channel:
    """Both ends speak alike; each is used by one thread."""

    def __init__(self, read: int, write: int) -> None:
        """Take the two ends of pipes; the channel closes them."""
        self._read = read
        self._write = write

    def send(self, message: Message, tensors: Tensors | None = None) -> None:
        """Write one frame.

        Raises:
            ChannelBroken: nobody reads.
        """
        given = tensors or {}
        described = [[name, tensor.dtype.name, list(tensor.shape)] for name, tensor in given.items()]
        text = json.dumps({**message, "tensors": described}).encode()
        try:
            self._put(_LENGTHS.pack(len(text), sum(tensor.nbytes for tensor in given.values())) + text)
            for tensor in filter(np.size, given.values()):
                self._put(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise ChannelBroken("the other side has ended") from error

    def receive(self, deadline: float | None = None) -> tuple[Message, Tensors]:
        """Read one frame.

        Args:
            deadline: of time.monotonic(); None waits as long as the other side lives.

        Raises:
            ChannelBroken, ChannelTimedOut
        """
        text_bytes, tensor_bytes = _LENGTHS.unpack(self._get(_LENGTHS.size, deadline))
        if text_bytes > _JSON_BYTES_MAX or tensor_bytes > _TENSOR_BYTES_MAX:
            raise ChannelBroken("a message is too large")
        text = self._get(text_bytes, deadline)
        content = self._get(tensor_bytes, deadline)
        try:
            message = json.loads(text)
            return message, _tensors(message.pop("tensors"), content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ChannelBroken("a message cannot be read") from error

    def close(self) -> None:
        for end in (self._read, self._write):
            if end >= 0:
                os.close(end)
        self._read = self._write = -1

    def _put(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._write, rest[:_PIECE_BYTES]) :]

    def _get(self, size_bytes: int, deadline: float | None) -> bytearray:
        data = bytearray()
        while len(data) < size_bytes:
            self._wait(deadline)
            piece = os.read(self._read, min(_PIECE_BYTES, size_bytes - len(data)))
            if not piece:
                raise ChannelBroken("the other side has ended")
            data += piece
        return data

    def _wait(self, deadline: float | None) -> None:
        if deadline is None:
            return
        poll = select.poll()  # select() cannot watch a descriptor above 1023
        poll.register(self._read, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ChannelTimedOut


def _tensors(described: list[Any], content: bytearray) -> Tensors:
    tensors: Tensors = {}
    at = 0
    for name, dtype_name, shape in described:
        dtype = DType(dtype_name).numpy
        if not isinstance(name, str) or len(shape) > _AXES_MAX or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("a tensor is described wrongly")
        size_bytes = prod(shape) * dtype.itemsize
        if at + size_bytes > len(content):
            raise ValueError("a tensor is cut off")
        tensors[name] = np.frombuffer(content, dtype, prod(shape), at).reshape(shape)
        at += size_bytes
    return tensors
