"""What the system has of memory. On a Jetson the GPU shares it."""

from __future__ import annotations

from pathlib import Path


def memory_bytes() -> dict[str, int]:
    """The kernel's /proc/meminfo, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines)
    return {name: int(value.split()[0]) << 10 for name, value in pairs if value.split()[-1:] == ["kB"]}


def available_bytes() -> int:
    """What new allocations can have without swapping."""
    return memory_bytes()["MemAvailable"]


def peak_bytes() -> int:
    """The most that this process has had in memory so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
