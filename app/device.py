"""What this device is and has: shown by GET /device, used by the memory budget."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from app import __version__
from app.backends import registry
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
    backends: tuple[BackendReport, ...]


def device_report(data_dir: Path) -> DeviceReport:
    memory = memory_bytes()
    disk = shutil.disk_usage(data_dir)
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
        backends=tuple(backend_report(name) for name in registry.NAMES),
    )


def backend_report(name: str) -> BackendReport:
    try:
        backend = registry.backend(name)
    except BackendMissing as error:
        return BackendReport(name, False, (), None, error.detail, error.hint)
    precisions = tuple(sorted(precision.value for precision in backend.precisions))
    return BackendReport(name, True, precisions, backend.facts(), None, None)


def memory_bytes() -> dict[str, int]:
    """The kernel's /proc/meminfo, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines)
    return {name: int(value.split()[0]) << 10 for name, value in pairs if value.split()[-1:] == ["kB"]}
