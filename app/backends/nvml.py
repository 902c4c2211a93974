"""NVIDIA's management library by ctypes: what a GPU is doing now. It makes no context on the GPU.

Source: NVML API reference. A call that a device does not support leaves its figure out.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

_LIBRARY = "libnvidia-ml.so.1"
_SENSOR_GPU = 0  # NVML_TEMPERATURE_GPU
_UUID_BYTES = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE


class NvmlMissing(Exception):
    """There is no such library, or no driver that it could talk to."""


@dataclass(frozen=True)
class GpuReading:
    """One GPU now; None = it does not tell."""

    uuid: str
    utilization: float | None = None  # share of the last sampling period with work on it, 0..1
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None  # since the driver was loaded
    temperature_c: float | None = None


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))  # percent


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Nvml:
    """The library, initialised once for the life of the process.

    Raises:
        NvmlMissing: it is not there or does not start.
    """

    def __init__(self) -> None:
        try:
            self._lib: Any = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise NvmlMissing(str(error)) from error
        if status := self._lib.nvmlInit_v2():
            raise NvmlMissing(f"nvmlInit_v2 answers {status}")

    def readings(self) -> list[GpuReading]:
        """Every GPU that this process may see, in the driver's order."""
        count = ctypes.c_uint()
        if self._lib.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return []
        handles = (self._handle(index) for index in range(count.value))
        return [self._reading(handle) for handle in handles if handle is not None]

    def _handle(self, index: int) -> ctypes.c_void_p | None:
        handle = ctypes.c_void_p()
        failed = self._lib.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle))
        return None if failed else handle

    def _reading(self, gpu: ctypes.c_void_p) -> GpuReading:
        uuid = ctypes.create_string_buffer(_UUID_BYTES)
        self._lib.nvmlDeviceGetUUID(gpu, uuid, ctypes.c_uint(_UUID_BYTES))
        busy = self._asked("nvmlDeviceGetUtilizationRates", gpu, _Utilization())
        memory = self._asked("nvmlDeviceGetMemoryInfo", gpu, _Memory())
        temperature = ctypes.c_uint()
        is_hot = self._lib.nvmlDeviceGetTemperature(gpu, ctypes.c_uint(_SENSOR_GPU), ctypes.byref(temperature)) == 0
        return GpuReading(
            uuid=uuid.value.decode(errors="replace"),
            utilization=busy.gpu / 100 if busy is not None else None,
            memory_total_bytes=memory.total if memory is not None else None,
            memory_used_bytes=memory.used if memory is not None else None,
            power_w=self._thousandths("nvmlDeviceGetPowerUsage", gpu, ctypes.c_uint()),
            power_limit_w=self._thousandths("nvmlDeviceGetEnforcedPowerLimit", gpu, ctypes.c_uint()),
            energy_j=self._thousandths("nvmlDeviceGetTotalEnergyConsumption", gpu, ctypes.c_ulonglong()),
            temperature_c=float(temperature.value) if is_hot else None,
        )

    def _thousandths(self, call: str, gpu: ctypes.c_void_p, into: Any) -> float | None:
        found = self._asked(call, gpu, into)
        return None if found is None else found.value / 1000

    def _asked(self, call: str, gpu: ctypes.c_void_p, into: Any) -> Any:
        """What the call put into `into`; None where the device or the library does not have it."""
        asked = getattr(self._lib, call, None)
        return None if asked is None or asked(gpu, ctypes.byref(into)) else into


@cache
def nvml() -> Nvml | None:
    """The library, or None where there is none; asked once."""
    try:
        return Nvml()
    except NvmlMissing:
        return None
