"""libcuda by ctypes: what must be known before TensorRT is touched, and the graph calls that pycuda lacks.

Source: CUDA driver API reference; the handles are pycuda's own.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

_LIBRARY = "libcuda.so.1"
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR, _INTEGRATED = 75, 76, 18  # CU_DEVICE_ATTRIBUTE_…
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does no harm


class DriverFailed(Exception):
    """A driver call failed; the text is the driver's."""


@dataclass(frozen=True)
class Gpu:
    """The first GPU."""

    name: str
    compute_capability: str  # "8.7"
    memory_bytes: int
    is_integrated: bool  # shares its memory with the processor, as on a Jetson
    driver: str  # newest CUDA that the driver runs, "12.6"


class Libcuda:
    """The driver's library.

    Raises:
        DriverFailed: there is none.
    """

    def __init__(self) -> None:
        # Kernels are loaded when they first run (CUDA 11.7 and newer): TensorRT brings far more than an engine uses,
        # and each takes memory of the host and of the device.
        os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
        try:
            self._lib: Any = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise DriverFailed(str(error)) from error

    def gpu(self) -> Gpu:
        """The first GPU, without making a context on it.

        TensorRT 11's lean runtime crashes when it is used without a GPU, so this is asked first.

        Raises:
            DriverFailed: no GPU, or no driver that works.
        """
        self._call("cuInit", 0)
        count, device, memory, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t(), ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if count.value < 1:
            raise DriverFailed("cuDeviceGetCount: no GPU")
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), device)
        self._call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        self._call("cuDriverGetVersion", ctypes.byref(version))
        major, minor, integrated = (
            self._attribute(number, device)
            for number in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR, _INTEGRATED)
        )
        driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return Gpu(name.value.decode(), f"{major}.{minor}", memory.value, bool(integrated), driver)

    def begin_capture(self, stream: int) -> None:
        """From now on work on the stream is recorded instead of run."""
        self._call("cuStreamBeginCapture_v2", _handle(stream), _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """End the record and make it runnable; the handle of the runnable graph."""
        graph, runnable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", _handle(stream), ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(runnable), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return runnable.value or 0

    def drop_capture(self, stream: int) -> None:
        """End a record that failed; the stream is usable again."""
        graph = ctypes.c_void_p()
        self._lib.cuStreamEndCapture(_handle(stream), ctypes.byref(graph))  # its status is the failure that is known
        if graph.value:
            self._lib.cuGraphDestroy(graph)

    def launch(self, graph: int, stream: int) -> None:
        status = self._lib.cuGraphLaunch(_handle(graph), _handle(stream))
        if status:
            raise DriverFailed(self._words("cuGraphLaunch", status))

    def destroy(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", _handle(graph))

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._lib, name)(*arguments)
        if status:
            raise DriverFailed(self._words(name, status))

    def _words(self, call: str, status: int) -> str:
        text = ctypes.c_char_p()
        self._lib.cuGetErrorName(status, ctypes.byref(text))
        return f"{call}: {(text.value or b'').decode() or 'error'} ({status})"


def _handle(value: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(value)
