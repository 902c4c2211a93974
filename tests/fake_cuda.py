"""A GPU of ordinary memory: what the TensorRT backend uses of pycuda.driver and of libcuda, kept honest.

The names and arguments are pycuda's (src/wrapper/wrap_cudadrv.cpp). Whatever is done without a current context, or
with memory that was freed, fails; so does a thread that ends with a context still pushed, by `assert_all_given_back`.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import numpy as np

from app.backends.tensorrt.driver import DriverFailed, Gpu


class FakeGpu:
    """The machine: memory by address, contexts pushed by thread, and what is being recorded on each stream."""

    def __init__(self) -> None:
        self.memory: dict[int, bytearray] = {}
        self.pushed: dict[int, int] = {}  # by thread
        self.recording: dict[int, list[Callable[[], None]]] = {}  # by stream
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.records = True  # whether recording works
        self.launches = 0
        self._next_address = 0x1000
        self.numbers = itertools.count(1)  # of streams and graphs
        self.driver = FakeDriver(self)
        self.libcuda = FakeLibcuda(self)

    def alloc(self, size: int) -> int:
        assert size > 0, "CUDA refuses to allocate nothing"
        address = self._next_address
        self._next_address += (size + 511) // 256 * 256
        self.memory[address] = bytearray(size)
        return address

    def do(self, stream: int, work: Callable[[], None]) -> None:
        """Work on a stream: done at once, or recorded."""
        self.needs_context()
        if stream in self.recording:
            self.recording[stream].append(work)
        else:
            work()

    def needs_context(self) -> None:
        if not self.pushed.get(threading.get_ident()):
            raise FakeError("invalid device context")

    def array(self, address: int, dtype: object, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self.memory[address], np.dtype(dtype), count).reshape(shape)

    def assert_all_given_back(self) -> None:
        assert not self.memory, f"{len(self.memory)} allocations were not freed"
        assert not self.graphs, f"{len(self.graphs)} graphs were not destroyed"
        assert not any(self.pushed.values()), "a context was pushed and not popped"


class FakeError(Exception):
    """pycuda.driver.Error."""


class FakeDriver:
    """pycuda.driver."""

    Error = FakeError

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu
        self._is_started = False

        class Context:
            def push(self) -> None:
                thread = threading.get_ident()
                gpu.pushed[thread] = gpu.pushed.get(thread, 0) + 1

            @staticmethod
            def pop() -> None:
                gpu.needs_context()
                gpu.pushed[threading.get_ident()] -= 1

        self.Context = Context

    def init(self) -> None:
        self._is_started = True

    def Device(self, ordinal: int) -> FakeDevice:
        assert self._is_started and ordinal == 0
        return FakeDevice(self.Context)

    def Stream(self) -> FakeStream:
        self._gpu.needs_context()
        return FakeStream(next(self._gpu.numbers))

    def pagelocked_empty(self, shape: int, dtype: object) -> np.ndarray:
        self._gpu.needs_context()
        assert shape > 0
        return np.full(shape, 0xAB, dtype)

    def mem_alloc(self, size: int) -> FakeAllocation:
        self._gpu.needs_context()
        return FakeAllocation(self._gpu, self._gpu.alloc(size))

    def mem_get_info(self) -> tuple[int, int]:
        self._gpu.needs_context()
        return 1 << 30, 2 << 30

    def memcpy_htod(self, dest: FakeAllocation, src: np.ndarray) -> None:
        self._gpu.needs_context()
        dest.write(src)

    def memcpy_htod_async(self, dest: FakeAllocation, src: np.ndarray, stream: FakeStream) -> None:
        self._gpu.do(stream.handle, lambda: dest.write(src))

    def memcpy_dtoh_async(self, dest: np.ndarray, src: FakeAllocation, stream: FakeStream) -> None:
        self._gpu.do(stream.handle, lambda: src.read(dest))


class FakeDevice:
    def __init__(self, context: type) -> None:
        self._context = context

    def retain_primary_context(self) -> object:
        return self._context()


class FakeStream:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def synchronize(self) -> None: ...


class FakeAllocation:
    def __init__(self, gpu: FakeGpu, address: int) -> None:
        self._gpu = gpu
        self._address = address

    def __int__(self) -> int:
        return self._address

    def write(self, source: np.ndarray) -> None:
        assert source.flags.c_contiguous and source.nbytes <= len(self._gpu.memory[self._address])
        self._gpu.memory[self._address][: source.nbytes] = source.tobytes()

    def read(self, target: np.ndarray) -> None:
        target[:] = np.frombuffer(self._gpu.memory[self._address], np.uint8, target.nbytes)

    def free(self) -> None:
        self._gpu.needs_context()
        del self._gpu.memory[self._address]


class FakeLibcuda:
    """`app.backends.tensorrt.driver.Libcuda`."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def gpu(self) -> Gpu:
        return Gpu("Fake GPU", "8.7", 2 << 30, True, "12.6")

    def begin_capture(self, stream: int) -> None:
        if not self._gpu.records:
            raise DriverFailed("cuStreamBeginCapture_v2: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED (900)")
        self._gpu.recording[stream] = []

    def end_capture(self, stream: int) -> int:
        graph = next(self._gpu.numbers)
        self._gpu.graphs[graph] = self._gpu.recording.pop(stream)
        return graph

    def drop_capture(self, stream: int) -> None:
        self._gpu.recording.pop(stream, None)

    def launch(self, graph: int, stream: int) -> None:
        self._gpu.needs_context()
        self._gpu.launches += 1
        for work in self._gpu.graphs[graph]:
            work()

    def destroy(self, graph: int) -> None:
        del self._gpu.graphs[graph]
