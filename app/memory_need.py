"""Whether the memory will do for a build, in words for the job's history."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.backends.memory import available_bytes
from app.room import asked
from app.storage.similar import SimilarBuilds

# Measured on ONNX Runtime, as peaks of the build process: digits (6 kB) 121 MiB, ResNet-18 (44 MiB) 337 in fp32 and 490
# in fp16, a wider one (174 MiB) 886.
_BASE_BYTES = 150 << 20
_PER_MODEL_BYTE = 9


@dataclass(frozen=True)
class Need:
    size_bytes: int
    reason: str


def needed(similar: SimilarBuilds | None, model_bytes: int) -> Need:
    """What a build will take at its peak: as builds like it took, else a guess from the size of the model."""
    if similar is not None and similar.memory_bytes is not None:
        return Need(similar.memory_bytes, f"as the median of {similar.count} builds like it")
    return Need(_BASE_BYTES + _PER_MODEL_BYTE * model_bytes, "a guess from the size of the model")


def made_room(socket: Path, need: Need, backend: str) -> tuple[str, bool]:
    """Have the server unload idle engines, as far as memory is short.

    Args:
        socket: where the server answers.

    Returns:
        What was found and done, and whether it is enough.
    """
    room = asked(socket, need.size_bytes, backend)
    free_bytes = min(available_bytes(), room.free_bytes) if room else available_bytes()
    text = f"memory: about {_mib(need.size_bytes)} MiB needed ({need.reason}), {_mib(free_bytes)} MiB free"
    if room is not None and room.evicted:
        text += f" after idle engines were unloaded: {', '.join(room.evicted)}"
    if free_bytes >= need.size_bytes:
        return text, True
    left = "no idle engine is left to unload" if room is not None else "no server was there to unload idle engines"
    return f"{text}; {left}: the system may end the build", False


def _mib(count_bytes: int) -> str:
    return f"{count_bytes >> 20:,}"
