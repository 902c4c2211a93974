"""An engine whose weights do not fit into one ONNX file, as one file all the same: weights, graph, length of the graph.

The runtime maps a file of weights by offsets, and does not mind what follows them. To load, the graph is read, and the
engine file itself linked, for a moment, under the name that the graph gives to its weights.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WEIGHTS = "weights.bin"  # as every packed graph calls the file of its weights
_END = struct.Struct("<Q8s")
_MARK = b"jetforge"


def pack(graph: Path, weights: Path, engine: Path) -> None:
    """Make the engine file out of both, which are then gone. Nothing large is copied."""
    content = graph.read_bytes()
    with weights.open("ab") as file:
        file.write(content)
        file.write(_END.pack(len(content), _MARK))
    weights.replace(engine)
    graph.unlink()


def packed_graph(engine: Path) -> bytes | None:
    """The graph of a packed engine; None for a plain ONNX file."""
    with engine.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        if size_bytes < _END.size:
            return None
        file.seek(-_END.size, os.SEEK_END)
        graph_bytes, mark = _END.unpack(file.read())
        if mark != _MARK or graph_bytes > size_bytes - _END.size:
            return None
        file.seek(-_END.size - graph_bytes, os.SEEK_END)
        return file.read(graph_bytes)


@contextmanager
def weights_folder(engine: Path) -> Iterator[Path]:
    """A folder in which the weights of a packed engine are found by their name, while it is being loaded."""
    # The runtime refuses a symbolic link out of the folder, and a hard link cannot leave the file system.
    folder = Path(tempfile.mkdtemp(prefix=".loading-", dir=engine.parent))
    try:
        os.link(engine, folder / WEIGHTS)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
