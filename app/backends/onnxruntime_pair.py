"""An engine of two graphs as one file: the one for runs of several threads, the one for runs of a single thread, the
length of the latter. What is fastest with one thread need not be with all."""

from __future__ import annotations

import os
import struct
from pathlib import Path

_END = struct.Struct("<Q8s")
_MARK = b"jetpair1"


def pair(engine: Path, single: Path) -> None:
    """Put the graph for runs of a single thread into the engine file, behind the other one."""
    content = single.read_bytes()
    with engine.open("ab") as file:
        file.write(content)
        file.write(_END.pack(len(content), _MARK))


def graph_of(engine: Path, threads: int) -> bytes | None:
    """The graph, an ONNX file, for runs of so many threads; None: the whole file is the one graph for all."""
    lengths = _lengths(engine)
    if lengths is None:
        return None
    several, single = lengths
    with engine.open("rb") as file:
        file.seek(several if threads == 1 else 0)
        return file.read(single if threads == 1 else several)


def graph_bytes(engine: Path) -> int:
    """Size of the larger graph, or of the only one."""
    return max(_lengths(engine) or (engine.stat().st_size,))


def _lengths(engine: Path) -> tuple[int, int] | None:
    """Of both graphs, several threads' first; None where there is but one."""
    with engine.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        if size_bytes < _END.size:
            return None
        file.seek(-_END.size, os.SEEK_END)
        single, mark = _END.unpack(file.read())
    several = size_bytes - _END.size - single
    return (several, single) if mark == _MARK and several > 0 else None
