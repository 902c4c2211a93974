"""Where the tensors of a run lie: buffers that grow, seen in the shapes of each run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.backends.tensorrt import versions
from app.backends.tensorrt.cuda import Buffer, Cuda
from app.domain.errors import ExecutionFailed
from app.domain.tensors import DType, Shape, Signature, Tensor, TensorSpec

Key = tuple[Shape, ...]  # the shapes of all inputs, in the engine's order

SHAPES_MAX = 16  # sets of shapes that are kept; a graph for each takes some hundred kB of the device
ALL = slice(None)  # the whole tensor, a scalar too
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Port:
    """One tensor of a run: its pinned memory seen in the engine's dtype and this run's shape."""

    spec: TensorSpec
    buffer: Buffer
    view: Tensor
    on_host: bool  # TensorRT itself writes the host's side

    @property
    def moved_bytes(self) -> int:
        return 0 if self.on_host else self.view.nbytes

    @property
    def address(self) -> int:
        return self.buffer.host_address if self.on_host else self.buffer.address

    def put(self, tensor: Tensor, place: slice) -> None:
        """Copy the tensor to its place along axis 0, converting int64 to the int32 of an older TensorRT.

        Raises:
            ExecutionFailed: a value does not fit.
        """
        if self.view.dtype != tensor.dtype and not _fits_int32(tensor):
            raise ExecutionFailed(
                f"The input {self.spec.name!r} holds a value outside the 32 bits that this TensorRT computes in.",
                hint="Keep the values within −2147483648 to 2147483647, or use TensorRT 10 or newer.",
            )
        np.copyto(self._at(place), tensor, casting="same_kind")

    def copied(self, place: slice) -> Tensor:
        """The caller's own copy of the place along axis 0, in the model's dtype."""
        view = self._at(place)
        return view.astype(np.int64) if self.spec.dtype is DType.INT64 else view.copy()

    def _at(self, place: slice) -> Tensor:
        return self.view if place is ALL else self.view[place]


@dataclass(frozen=True)
class Layout:
    """The tensors of a run at one set of input shapes."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def ports(self) -> tuple[Port, ...]:
        return (*self.inputs, *self.outputs)


class Layouts:
    """The buffers of one context, and its layouts by the shapes of the inputs."""

    def __init__(self, trt: Any, cuda: Cuda, engine: Any, signature: Signature) -> None:
        self._cuda = cuda
        self._signature = signature
        specs = (*signature.inputs, *signature.outputs)
        self._dtypes = {spec.name: _engine_dtype(trt, engine, spec) for spec in specs}
        host = trt.TensorLocation.HOST
        self._on_host = {spec.name for spec in specs if engine.get_tensor_location(spec.name) == host}
        self._buffers: dict[str, Buffer] = {}
        self._layouts: OrderedDict[Key, Layout] = OrderedDict()

    def get(self, key: Key) -> Layout | None:
        return self._layouts.get(key)

    def made(self, key: Key, outputs: dict[str, Shape], moving: Callable[[], None]) -> Layout:
        """A new layout.

        Args:
            outputs: their shapes.
            moving: called before a buffer gets another address: what was recorded with the old one is then void.
        """
        shapes = {spec.name: shape for spec, shape in zip(self._signature.inputs, key, strict=True)}
        shapes.update(outputs)
        needed = {name: self._dtypes[name].itemsize * _volume(shape) for name, shape in shapes.items()}
        outgrown = [name for name, size in needed.items() if self._size_of(name) < max(1, size)]
        if outgrown:
            moving()
            self._layouts.clear()
            for name in outgrown:
                self._grow(name, needed[name])
        layout = Layout(
            tuple(self._port(spec, shapes[spec.name]) for spec in self._signature.inputs),
            tuple(self._port(spec, shapes[spec.name]) for spec in self._signature.outputs),
        )
        self._layouts[key] = layout
        if len(self._layouts) > SHAPES_MAX:
            self._layouts.popitem(last=False)
        return layout

    @property
    def size_bytes(self) -> int:
        """Of all buffers, on the host and on the device."""
        return 2 * sum(buffer.size_bytes for buffer in self._buffers.values())

    def close(self) -> None:
        self._layouts.clear()
        while self._buffers:
            self._buffers.popitem()[1].close()

    def _grow(self, name: str, size_bytes: int) -> None:
        if name in self._buffers:
            self._buffers.pop(name).close()
        self._buffers[name] = self._cuda.buffer(max(1, size_bytes))

    def _size_of(self, name: str) -> int:
        return self._buffers[name].size_bytes if name in self._buffers else 0

    def _port(self, spec: TensorSpec, shape: Shape) -> Port:
        buffer = self._buffers[spec.name]
        return Port(spec, buffer, buffer.view(self._dtypes[spec.name], shape), spec.name in self._on_host)


def _engine_dtype(trt: Any, engine: Any, spec: TensorSpec) -> np.dtype[Any]:
    """As the engine computes: int32 where an older TensorRT has no int64."""
    found = versions.dtype_of(trt, engine.get_tensor_dtype(spec.name))
    return (found or spec.dtype).numpy


def _fits_int32(tensor: Tensor) -> bool:
    return tensor.size == 0 or bool(_INT32.min <= tensor.min() and tensor.max() <= _INT32.max)


def _volume(shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64))
