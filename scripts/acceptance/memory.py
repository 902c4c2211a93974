"""Memory of the server process and of the GPU, as far as this machine tells."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PATIENCE_S = 10.0
_TEGRASTATS = "/usr/bin/tegrastats"


@dataclass(frozen=True)
class Memory:
    """In MiB; None where nobody tells."""

    resident: float | None  # of the server process, its libraries included
    anonymous: float | None  # the part of it that is no file's
    gpu: float | None  # used on the first GPU, by everybody
    system: float  # used of the machine's memory, which on a Jetson is the GPU's too


def memory_now(pid: int | None) -> Memory:
    """What is used now.

    Args:
        pid: of the server; None: unknown.
    """
    status = _table(Path(f"/proc/{pid}/status")) if pid is not None else {}
    machine = _table(Path("/proc/meminfo"))
    return Memory(
        resident=status.get("VmRSS"),
        anonymous=status.get("RssAnon"),
        gpu=_gpu_used(),
        system=_tegra_used() or machine["MemTotal"] - machine["MemAvailable"],
    )


def gpu_used_in(said: str) -> float | None:
    """From nvidia-smi's answer; None where it has no figure, as on a Jetson."""
    first = said.strip().splitlines()[0].strip() if said.strip() else ""
    return float(first) if first.isdigit() else None


def tegra_used_in(line: str) -> float | None:
    """From a line of tegrastats: `RAM 3171/7620MB (lfb 4x4MB) CPU …`."""
    found = re.search(r"\bRAM (\d+)/\d+MB", line)
    return float(found.group(1)) if found else None


def _table(path: Path) -> dict[str, float]:
    """The kB lines of a file in /proc, in MiB."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", path.read_text(), re.M)
    return {name: int(value) / 1024 for name, value in found}


def _gpu_used() -> float | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return gpu_used_in(ran.stdout)


def _tegra_used() -> float | None:
    """tegrastats prints a line a second for ever: the first one is taken."""
    command = shutil.which("tegrastats") or _TEGRASTATS
    if not os.access(command, os.X_OK):
        return None
    process = subprocess.Popen([command, "--interval", "500"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], _PATIENCE_S)
        line = os.read(process.stdout.fileno(), 4096) if ready else b""
    finally:
        process.kill()
        process.communicate()
    return tegra_used_in(line.decode(errors="replace"))
