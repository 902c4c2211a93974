"""TensorRT by itself: the least that a run can cost in this process, with a CUDA graph and nothing around it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from app.backends.tensorrt.driver import Libcuda
from app.backends.tensorrt.versions import dtype_of


class BareLoop:
    """One engine, one context, pinned memory, copies in and out and the run as one graph."""

    def __init__(self, engine: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._engine = engine
        self._shapes = shapes
        self._opened = ExitStack()

    def __enter__(self) -> BareLoop:
        try:
            self._open()
        except BaseException:
            self._opened.close()
            raise
        return self

    def _open(self) -> None:
        trt, cuda = import_module("tensorrt"), import_module("pycuda.driver")
        cuda.init()
        primary = cuda.Device(0).retain_primary_context()
        primary.push()
        self._opened.callback(cuda.Context.pop)
        self._kept: list[Any] = [trt.Logger(trt.Logger.ERROR)]
        self._opened.callback(self._kept.clear)
        runtime = trt.Runtime(self._kept[0])
        engine = runtime.deserialize_cuda_engine(self._engine.read_bytes())
        context = engine.create_execution_context()
        self._stream: Any = cuda.Stream()
        self._libcuda = Libcuda()
        for name, shape in self._shapes.items():
            assert context.set_input_shape(name, shape)
        moves = [self._bound(trt, cuda, engine, context, index) for index in range(engine.num_io_tensors)]
        self._kept += [runtime, engine, context, moves, primary]

        def run() -> None:
            for is_input, host, device in moves:
                if is_input:
                    cuda.memcpy_htod_async(device, host, self._stream)
            assert context.execute_async_v3(self._stream.handle)
            for is_input, host, device in moves:
                if not is_input:
                    cuda.memcpy_dtoh_async(host, device, self._stream)

        run()
        self._stream.synchronize()
        self._libcuda.begin_capture(self._stream.handle)
        run()
        self._graph = self._libcuda.end_capture(self._stream.handle)
        self._opened.callback(self._libcuda.destroy, self._graph)

    def __exit__(self, *_: object) -> None:
        self._stream.synchronize()
        self._stream = None
        self._opened.close()

    def p50_ms(self, runs: int = 500) -> float:
        times = []
        for _ in range(runs + 20):
            started = time.perf_counter()
            self._libcuda.launch(self._graph, self._stream.handle)
            self._stream.synchronize()
            times.append(time.perf_counter() - started)
        return float(np.median(times[20:])) * 1e3

    def _bound(self, trt: Any, cuda: Any, engine: Any, context: Any, index: int) -> tuple[bool, Any, Any]:
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        shape = tuple(context.get_tensor_shape(name))
        dtype = dtype_of(trt, engine.get_tensor_dtype(name))
        assert dtype is not None
        size = dtype.numpy.itemsize * int(np.prod(shape))
        host, device = cuda.pagelocked_empty(size, np.uint8), cuda.mem_alloc(size)
        host[:] = 0
        assert context.set_tensor_address(name, int(device))
        return is_input, host, device
