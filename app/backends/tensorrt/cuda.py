"""CUDA through pycuda: the primary context, buffers, streams, graphs and the scratch memory that contexts share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.backends.tensorrt.driver import DriverFailed, Libcuda
from app.domain.tensors import Tensor


class Cuda:
    """The first GPU.

    Every object made here belongs to the primary context, which TensorRT uses as well. A thread must have pushed it
    while it makes, uses or frees one.
    """

    def __init__(self, driver: Any, libcuda: Libcuda) -> None:
        """Bind the libraries; nothing is started.

        Args:
            driver: the module pycuda.driver.
        """
        self._driver = driver
        self._libcuda = libcuda
        self._context: Any = None
        self._lock = threading.Lock()
        self.errors: tuple[type[Exception], ...] = (driver.Error, DriverFailed)
        self.scratch = ScratchPool(self)

    def push(self) -> None:
        """Make the primary context this thread's current one. pycuda aborts the process if it is never popped."""
        with self._lock:
            if self._context is None:  # one object for all threads: pycuda frees by comparing it
                self._driver.init()
                self._context = self._driver.Device(0).retain_primary_context()
        self._context.push()

    def pop(self) -> None:
        self._driver.Context.pop()

    @contextmanager
    def pushed(self) -> Iterator[None]:
        self.push()
        try:
            yield
        finally:
            self.pop()

    def memory(self) -> tuple[int, int]:
        """Free and total device memory, in bytes."""
        free, total = self._driver.mem_get_info()
        return int(free), int(total)

    def stream(self) -> Stream:
        return Stream(self._driver, self._libcuda)

    def buffer(self, size_bytes: int) -> Buffer:
        return Buffer(self._driver, size_bytes)

    def send(self, buffer: Buffer, tensor: Tensor) -> None:
        """Copy a contiguous tensor to the device, and wait for it."""
        self._driver.memcpy_htod(buffer.device, tensor)

    def block(self, size_bytes: int) -> Block:
        return Block(self._driver.mem_alloc(size_bytes), size_bytes)


class Stream:
    """A stream that is not the default one, which would wait for all others."""

    def __init__(self, driver: Any, libcuda: Libcuda) -> None:
        self._driver = driver
        self._libcuda = libcuda
        self._stream = driver.Stream()
        self.handle: int = self._stream.handle

    def send(self, buffer: Buffer, size_bytes: int) -> None:
        self._driver.memcpy_htod_async(buffer.device, buffer.host[:size_bytes], self._stream)

    def fetch(self, buffer: Buffer, size_bytes: int) -> None:
        self._driver.memcpy_dtoh_async(buffer.host[:size_bytes], buffer.device, self._stream)

    def wait(self) -> None:
        self._stream.synchronize()

    def recorded(self, work: Callable[[], None]) -> Graph:
        """The work as a graph: its copies and kernels, at the addresses that they have now.

        Raises:
            DriverFailed: it holds something that cannot be recorded.
        """
        self._libcuda.begin_capture(self.handle)
        try:
            work()
        except BaseException:
            self._libcuda.drop_capture(self.handle)
            raise
        return Graph(self._libcuda, self._libcuda.end_capture(self.handle), self.handle)


class Graph:
    def __init__(self, libcuda: Libcuda, graph: int, stream: int) -> None:
        self._libcuda = libcuda
        self._graph = graph
        self._stream = stream

    def launch(self) -> None:
        self._libcuda.launch(self._graph, self._stream)

    def close(self) -> None:
        self._libcuda.destroy(self._graph)


class Buffer:
    """Memory of one tensor, twice: pinned on the host, so that copies need no other one, and on the device."""

    def __init__(self, driver: Any, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.host: NDArray[np.uint8] = driver.pagelocked_empty(size_bytes, np.uint8)
        self.device = driver.mem_alloc(size_bytes)

    @property
    def address(self) -> int:
        return int(self.device)

    @property
    def host_address(self) -> int:
        return int(self.host.ctypes.data)

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Tensor:
        """The host's side as a tensor; keeps the memory alive."""
        size_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        return self.host[:size_bytes].view(dtype).reshape(shape)

    def close(self) -> None:
        """Give both back; the host's side goes with the last view of it."""
        self.device.free()
        del self.host


@dataclass(frozen=True, eq=False)
class Block:
    """A piece of device memory; equal only to itself."""

    allocation: Any
    size_bytes: int

    @property
    def address(self) -> int:
        return int(self.allocation)


class ScratchPool:
    """Scratch memory for contexts while they run: idle ones hold none.

    A context is given the block that it had before where that is free, as its recorded graphs hold the address.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._free: list[Block] = []
        self._lock = threading.Lock()

    @contextmanager
    def leased(self, size_bytes: int, before: Block | None) -> Iterator[Block]:
        """A block of at least this size, for the duration."""
        block = self._taken(size_bytes, before) or self._cuda.block(size_bytes)
        try:
            yield block
        finally:
            with self._lock:
                self._free.append(block)

    def trim(self) -> None:
        """Free what nobody uses now."""
        with self._lock:
            blocks, self._free = self._free, []
        for block in blocks:
            block.allocation.free()

    def _taken(self, size_bytes: int, before: Block | None) -> Block | None:
        with self._lock:
            if before is not None and before in self._free and before.size_bytes >= size_bytes:
                self._free.remove(before)
                return before
            fitting = [block for block in self._free if block.size_bytes >= size_bytes]
            if fitting:
                self._free.remove(fitting[-1])
                return fitting[-1]
            outgrown = self._free.pop() if self._free else None
        if outgrown is not None:  # a larger one takes its place
            outgrown.allocation.free()
        return None
