"""What this device is and has: shown by GET /device, used by the memory budget."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from app import __version__
from app.backends import registry
from app.backends.board import (
    board_model,
    gpu_load,
    gpu_power_w,
    jetpack_of,
    l4t_release,
    power_mode,
    temperatures_c,
)
from app.backends.memory import memory_bytes
from app.backends.nvml import GpuReading, nvml
from app.backends.tensorrt.driver import DriverFailed, Libcuda
from app.domain.builds import Facts
from app.domain.errors import BackendMissing


@dataclass(frozen=True)
class BackendReport:
    """One backend: what it is valid under, or what is missing and how to get it."""

    name: str
    available: bool
    precisions: tuple[str, ...]
    facts: Facts | None
    missing: str | None
    hint: str | None


@dataclass(frozen=True)
class GpuReport:
    """The first NVIDIA GPU."""

    name: str
    compute_capability: str
    memory_mib: int
    shares_memory: bool  # with the processor, as on a Jetson
    cuda: str  # newest CUDA that the driver runs
    dla_cores: int | None  # None: without TensorRT nobody knows


@dataclass(frozen=True)
class DeviceReport:
    machine: str  # x86_64, aarch64
    system: str
    python: str
    jetforge: str
    cpus: int
    memory_total_mib: int
    memory_available_mib: int
    disk_total_mib: int  # of the file system that holds the data folder
    disk_free_mib: int
    board: str | None  # None where the device tree has no name
    l4t: str | None  # Jetson's system release
    jetpack: str | None
    power_mode: str | None
    temperatures_c: dict[str, float]  # by the kernel's name of the zone
    gpu: GpuReport | None
    gpu_load: float | None  # share of the last moment with work on it, 0..1; None: there is none, or it does not tell
    gpu_missing: str | None  # why there is none
    backends: tuple[BackendReport, ...]


def device_report(data_dir: Path) -> DeviceReport:
    memory = memory_bytes()
    disk = shutil.disk_usage(data_dir)
    gpu, gpu_missing = _gpu()
    l4t = l4t_release()
    return DeviceReport(
        machine=platform.machine(),
        system=platform.platform(),
        python=platform.python_version(),
        jetforge=__version__,
        cpus=os.cpu_count() or 1,
        memory_total_mib=memory["MemTotal"] >> 20,
        memory_available_mib=memory["MemAvailable"] >> 20,
        disk_total_mib=disk.total >> 20,
        disk_free_mib=disk.free >> 20,
        board=board_model(),
        l4t=l4t,
        jetpack=jetpack_of(l4t),
        power_mode=power_mode(),
        temperatures_c=temperatures_c(),
        gpu=gpu,
        gpu_load=next((reading.utilization for reading in gpu_readings()), None),
        gpu_missing=gpu_missing,
        backends=tuple(backend_report(name) for name in registry.NAMES),
    )


def backend_report(name: str) -> BackendReport:
    try:
        backend = registry.backend(name)
    except BackendMissing as error:
        return BackendReport(name, False, (), None, error.detail, error.hint)
    precisions = tuple(sorted(precision.value for precision in backend.precisions))
    return BackendReport(name, True, precisions, backend.facts(), None, None)


def _gpu() -> tuple[GpuReport | None, str | None]:
    """The GPU, or why there is none; asked of the driver, so that it is told also where TensorRT is missing."""
    try:
        gpu = Libcuda().gpu()
    except DriverFailed as error:
        return None, str(error)
    cores = _dla_cores()
    return GpuReport(
        gpu.name, gpu.compute_capability, gpu.memory_bytes >> 20, gpu.is_integrated, gpu.driver, cores
    ), None


def _dla_cores() -> int | None:
    try:
        cores: int = getattr(registry.backend("tensorrt"), "dla_cores")  # noqa: B009, its own: no other backend has any
    except BackendMissing:
        return None
    return cores


def gpu_readings() -> list[GpuReading]:
    """What the GPUs are doing now; empty where there is none.

    A Jetson's GPU is read from the board's own files and has no memory of its own: it shares the processor's.
    """
    load = gpu_load()
    if load is not None:
        memory = memory_bytes()
        total, available = memory["MemTotal"], memory["MemAvailable"]
        return [GpuReading("board", load, total, total - available, gpu_power_w())]
    library = nvml()
    return library.readings() if library is not None else []
