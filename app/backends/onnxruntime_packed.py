"""An engine whose weights do not fit into one ONNX file, as one file all the same: weights, graph, length of the graph.

The runtime maps a file of weights by offsets, and does not mind what follows them. To load, the graph is read, and the
engine file itself linked, for a moment, under the name that the graph gives to its weights.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.backends.onnxruntime_tail import append, lengths, part

WEIGHTS = "weights.bin"  # as every packed graph calls the file of its weights
_MARK = b"jetforge"


def pack(graph: Path, weights: Path, engine: Path) -> None:
    """Make the engine file out of both, which are then gone. Nothing large is copied."""
    append(weights, graph.read_bytes(), _MARK)
    weights.replace(engine)
    graph.unlink()


def packed_graph(engine: Path) -> bytes | None:
    """The graph of a packed engine; None for a plain ONNX file."""
    sizes = lengths(engine, _MARK)
    return None if sizes is None else part(engine, *sizes)


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
