"""An engine of two graphs as one file: the one for runs of several threads, behind it the one for runs of a single
thread. What is fastest with one thread need not be with all."""

from __future__ import annotations

from pathlib import Path

from app.backends.onnxruntime_tail import append, lengths, part

_MARK = b"jetpair1"


def pair(engine: Path, single: Path) -> None:
    """Put the graph for runs of a single thread into the engine file, behind the other one."""
    append(engine, single.read_bytes(), _MARK)


def graph_of(engine: Path, threads: int) -> bytes | None:
    """The graph, an ONNX file, for runs of so many threads; None: the whole file is the one graph for all."""
    sizes = _sizes(engine)
    if sizes is None:
        return None
    several, single = sizes
    return part(engine, several, single) if threads == 1 else part(engine, 0, several)


def graph_bytes(engine: Path) -> int:
    """Size of the larger graph, or of the only one."""
    return max(_sizes(engine) or (engine.stat().st_size,))


def _sizes(engine: Path) -> tuple[int, int] | None:
    """Of both graphs, several threads' first; None where there is but one."""
    sizes = lengths(engine, _MARK)
    return sizes if sizes and sizes[0] > 0 else None
