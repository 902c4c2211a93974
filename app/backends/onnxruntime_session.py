"""Sessions of ONNX Runtime: opened from a file, described in our terms, their errors in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnxruntime as ort

from app.backends import onnxruntime_packed as packed
from app.backends.onnxruntime_pair import graph_of
from app.domain.errors import EngineUnloadable
from app.domain.tensors import ANY, DType, Signature, TensorSpec

_DTYPES = {
    **{f"tensor({dtype.value})": dtype for dtype in DType},
    "tensor(float)": DType.FLOAT32,
    "tensor(double)": DType.FLOAT64,
}
FATAL = 4  # log severity: every error is raised as well, and the log of a server is not the runtime's

ort.set_default_logger_severity(FATAL)
ort.disable_telemetry_events()  # it would keep a database in the home folder of whoever runs the service


def is_ort_format(path: Path) -> bool:
    """Whether the file is in the runtime's own format (.ort), by its mark; one that cannot be read is not."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(8)[4:] == b"ORTM"
    return False


class RuntimeRefused(Exception):
    """The runtime's own words, on one line, without paths."""


def opened_session(path: Path, setup: Any, threads: int = 1) -> Any:
    """A session over the file, packed or not, on processors.

    Args:
        threads: of a run, for a file that has a graph of its own for one.

    Raises:
        RuntimeRefused: the runtime does not take it.
    """
    try:
        if (graph := graph_of(path, threads)) is not None:
            return ort.InferenceSession(graph, setup, providers=["CPUExecutionProvider"])
        graph = packed.packed_graph(path)
        if graph is None:
            return ort.InferenceSession(str(path), setup, providers=["CPUExecutionProvider"])
        with packed.weights_folder(path) as folder:
            setup.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
            return ort.InferenceSession(graph, setup, providers=["CPUExecutionProvider"])
    except MemoryError:
        raise
    except Exception as error:  # the runtime's exceptions have no base of their own
        raise RuntimeRefused(words(error).replace(str(path), "the file")) from error


def unloadable(error: RuntimeRefused) -> EngineUnloadable:
    """The refusal of a file that was an engine."""
    return EngineUnloadable(f"ONNX Runtime refused the engine: {error}", hint="Build the engine again on this device.")


def signature_of(session: Any) -> Signature:
    """The inputs and outputs of a session.

    Raises:
        RuntimeRefused: one is of a type that engines cannot carry.
    """
    return Signature(_specs(session.get_inputs()), _specs(session.get_outputs()))


def words(error: Exception) -> str:
    """What the runtime said, on one line: without its prefix, source file and the path of the model."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = re.sub(r"Load model from .*? failed:", "", text, flags=re.DOTALL)
    text = re.sub(r"\S*/onnxruntime/core/\S+:\d+ (?:[^()]*\([^()]*\)(?: const)? )?", "", text)
    return " ".join(text.split())[:500]


def _specs(nodes: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(node.name, _dtype(node), tuple(map(_length, node.shape))) for node in nodes)


def _dtype(node: Any) -> DType:
    if node.type not in _DTYPES:
        raise RuntimeRefused(f"{node.name!r} is of type {node.type}, which engines cannot carry")
    return _DTYPES[node.type]


def _length(dim: object) -> int:
    return dim if isinstance(dim, int) and dim >= 0 else ANY  # a symbol's name, or None
