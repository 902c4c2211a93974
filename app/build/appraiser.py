"""The process that tries an uploaded engine: `python -m app.build.appraiser FOLDER --parent PID`.

An engine is code that runs on this device, and may be damaged or hostile: it is loaded and run here first, and never
in the server before. Writes answer.json last, or failure.json.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path

from app.backends import registry
from app.backends.base import Backend, LoadedEngine
from app.build.appraisal import ANSWER, ENGINE, FAILURE, REQUEST, Appraised
from app.build.latency import measured_latency
from app.build.process import be_first_to_go, die_with_parent
from app.domain.builds import Latency
from app.domain.errors import EngineTooLarge, EngineUnloadable, ExecutionFailed, ServiceError
from app.domain.jobs import Failure
from app.domain.tensors import Tensors, warm_up_inputs
from app.storage.codec import encode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.build.appraiser")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    parsed = parser.parse_args()
    die_with_parent(parsed.parent)
    be_first_to_go()
    folder: Path = parsed.folder
    try:
        backend = registry.backend((folder / REQUEST).read_text())
        (folder / ANSWER).write_text(encode(appraise(backend, folder / ENGINE)))
    except MemoryError:
        _refuse(folder, EngineTooLarge("The device has no memory left to load the engine.", hint="Unload engines."))
    except ServiceError as error:
        _refuse(folder, error)
    return 0


def appraise(backend: Backend, engine: Path) -> Appraised:
    """Load the engine and run it once, and some more for its latency.

    Raises:
        EngineUnloadable, EngineStale: as the runtime says.
        ModelInvalid, ExternalDataMissing: an ONNX file that is damaged or names other files.
    """
    if backend.name == "onnxruntime":
        _refuse_strange_graphs(engine, backend)
    with closing(backend.load(engine)) as loaded:
        answer, latency, problem = _tried(loaded)
        lengths = {name: tensor.shape[-1] if tensor.shape else 1 for name, tensor in answer.items()}
        return Appraised(loaded.signature, latency, loaded.device_bytes, lengths, problem)


def _refuse(folder: Path, error: ServiceError) -> None:
    (folder / FAILURE).write_text(encode(Failure(error.code, error.detail, error.hint)))


def _refuse_strange_graphs(engine: Path, backend: Backend) -> None:
    """Refuse what a build would not have made.

    Raises:
        ExternalDataMissing: a graph names files of this device as its weights.
        EngineUnloadable: the engine has two graphs that are not of one network.
    """
    from app.backends.onnxruntime_pair import graph_of
    from app.backends.onnxruntime_session import is_ort_format
    from app.build.graph import parsed

    if is_ort_format(engine):
        return
    signatures = []
    for threads in (1, 2):
        graph = graph_of(engine, threads)
        if graph is None:
            parsed(engine)
            return
        part = engine.with_name(f"graph-{threads}")
        part.write_bytes(graph)
        parsed(part)
        with closing(backend.load(part)) as loaded:
            signatures.append(loaded.signature)
    if signatures[0] != signatures[1]:
        raise EngineUnloadable(
            "The engine has two graphs, and these have different inputs or outputs.",
            hint="Build the engine again on this device.",
        )


def _tried(loaded: LoadedEngine) -> tuple[Tensors, Latency, str]:
    """The answer to made-up inputs, how fast it came, and why there is none."""
    inputs = warm_up_inputs(loaded.signature)
    first = next(iter(inputs.values()), None)
    rows = first.shape[0] if first is not None and first.ndim else 1
    with closing(loaded.open_context()) as context:
        try:
            return context.run(inputs), measured_latency(context, inputs, rows), ""
        except ExecutionFailed as error:  # the values and the open lengths are made up: real ones may do
            return {}, Latency(0, 0, 0, 0, 0), error.detail


if __name__ == "__main__":
    sys.exit(main())
