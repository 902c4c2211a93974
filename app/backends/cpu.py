"""What this processor is called: part of what a CPU engine is valid under."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

# Extensions on which ONNX Runtime's choice of kernels and memory layouts depends.
_EXTENSIONS = (
    *("avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"),
    *("asimdhp", "asimddp", "i8mm", "sve", "bf16"),
)


@cache
def cpu_name() -> str:
    """Model name and the extensions that matter, as in `AMD EPYC 7R13 (avx avx2)`."""
    fields = _first_processor()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    extensions = " ".join(name for name in _EXTENSIONS if name in flags)
    model = fields.get("model name") or _board() or _arm_part(fields) or platform.machine()
    return f"{model} ({extensions})" if extensions else model


def saturates() -> bool:
    """Whether sums of two 8-bit products overflow: x86 without its integer dot product (VNNI)."""
    flags = _first_processor().get("flags", "").split()
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & set(flags)


def _first_processor() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    block = text.split("\n\n", 1)[0]
    return {key.strip(): value.strip() for key, value in re.findall(r"^([^:\n]+):(.*)$", block, re.MULTILINE)}


def _board() -> str:
    """The board's own name, which Arm systems tell in their device tree; "" elsewhere."""
    try:
        return Path("/proc/device-tree/model").read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _arm_part(fields: dict[str, str]) -> str:
    implementer, part = fields.get("CPU implementer"), fields.get("CPU part")
    return f"Arm {implementer}:{part}" if implementer and part else ""
