"""ONNX Runtime on the CPU: engines everywhere, and the reference that every engine is verified against.

An engine is the graph after the runtime's own optimisation, saved. It uses kernels and memory layouts of the CPU it
was made on, so it is valid under that CPU and that version of the runtime only.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from app.backends import onnxruntime_packed as packed
from app.backends.base import Backend, Context, LoadedEngine, Progress, Samples
from app.backends.cpu import cpu_name
from app.domain.builds import BuildOptions, Facts, Int8Method, Placement, Precision
from app.domain.errors import CompileFailed, EngineUnloadable, ExecutionFailed
from app.domain.tensors import ANY, DType, ShapeRange, Signature, Tensors, TensorSpec

_DTYPES = {
    **{f"tensor({dtype.value})": dtype for dtype in DType},
    "tensor(float)": DType.FLOAT32,
    "tensor(double)": DType.FLOAT64,
}
_FATAL = 4  # log severity: every error is raised as well, and the log of a server is not the runtime's

ort.set_default_logger_severity(_FATAL)
ort.disable_telemetry_events()  # it would keep a database in the home folder of whoever runs the service


class OnnxRuntime(Backend):
    """The backend of every device: no GPU needed."""

    name = "onnxruntime"
    precisions = frozenset({Precision.FP32, Precision.FP16, Precision.INT8})
    int8_methods = (Int8Method.QDQ,)
    placement = Placement.ONNXRUNTIME
    fp16_in_graph = True  # a gain in size only: processors without float16 arithmetic compute in float32

    def __init__(self, threads: int | None = None) -> None:
        """Set how engines run.

        Args:
            threads: that share one run; None: half of the processors.
        """
        self._threads = threads or max(1, len(os.sched_getaffinity(0)) // 2)

    def facts(self) -> Facts:
        return Facts(self.name, ort.__version__, cpu_name(), platform.machine())

    def check(self, onnx: Path) -> None:
        from app.backends import onnxruntime_models  # needs the onnx package, which only the build child imports

        onnxruntime_models.check(onnx)

    @property
    def opset_max(self) -> int:
        from app.backends import onnxruntime_models

        return onnxruntime_models.limits().opset

    def compile(
        self,
        onnx: Path,
        options: BuildOptions,
        ranges: Mapping[str, ShapeRange],
        engine: Path,
        progress: Progress,
        *,
        calibration: Samples | None,
        cache: Path,
        rows_max: int,
    ) -> None:
        try:
            self._optimise(onnx, engine)
            self.load(engine).close()  # a graph can be optimised into one that the runtime then refuses
        except (_RuntimeRefused, EngineUnloadable) as error:
            raise CompileFailed(
                f"ONNX Runtime could not optimise the model: {error}",
                hint="Build with simplify=false, or export the model with another opset.",
            ) from error
        progress.step(f"optimised for {cpu_name()}: {engine.stat().st_size / 2**10:,.0f} KiB")

    def _optimise(self, onnx: Path, engine: Path) -> None:
        from app.backends.onnxruntime_models import is_split

        setup = self._setup(ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
        if not is_split(onnx):
            setup.optimized_model_filepath = str(engine)
            _session(onnx, setup)
            return
        graph, weights = engine.with_suffix(".graph"), engine.with_name(packed.WEIGHTS)
        setup.optimized_model_filepath = str(graph)
        setup.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights.name)
        setup.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        _session(onnx, setup)
        packed.pack(graph, weights, engine)

    def fold(self, onnx: Path, out: Path) -> None:
        """Write the graph with its constants folded and batch normalisations taken into their convolutions: plain
        ONNX, for any processor.

        Raises:
            CompileFailed: the runtime refused the model.
        """
        setup = self._setup(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
        setup.optimized_model_filepath = str(out)
        try:
            _session(onnx, setup)
        except _RuntimeRefused as error:
            raise CompileFailed(
                f"ONNX Runtime could not fold the model's constants: {error}", hint="Export it with another opset."
            ) from error

    def load(self, engine: Path) -> LoadedEngine:
        # Whatever was worth optimising is optimised in the file: doing it again would only cost time.
        setup = self._setup(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
        try:
            session = _session(engine, setup)
            signature = Signature(_specs(session.get_inputs()), _specs(session.get_outputs()))
        except _RuntimeRefused as error:
            raise EngineUnloadable(
                f"ONNX Runtime refused the engine: {error}", hint="Build the engine again on this device."
            ) from error
        return _Engine(session, signature, engine.stat().st_size)

    def _setup(self, level: Any) -> Any:
        setup = ort.SessionOptions()
        setup.graph_optimization_level = level
        setup.intra_op_num_threads = self._threads
        setup.inter_op_num_threads = 1
        setup.log_severity_level = _FATAL
        # A pool that spins after a run takes the processor from the other contexts and from the server.
        setup.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return setup


class _Engine(LoadedEngine):
    """A session; its contexts share it, since the runtime's `run` may be called from several threads."""

    def __init__(self, session: Any, signature: Signature, file_bytes: int) -> None:
        self._session: Any = session
        self._signature = signature
        self._file_bytes = file_bytes

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def device_bytes(self) -> int:
        """An estimate, as the runtime does not tell: twice the file, and 4 MiB for a session of any size.

        Measured growth of resident memory after runs of 1 and of 8 images: ResNet-18 (file 44 MiB) 69 and 131 MiB,
        ResNet-50 (file 97 MiB) 133 and 238 MiB.
        """
        return 2 * self._file_bytes + 4 * 2**20

    def open_context(self) -> Context:
        return _SharedContext(self._session, self._signature)

    def close(self) -> None:
        self._session = None
        _trim_heap()


class _SharedContext(Context):
    def __init__(self, session: Any, signature: Signature) -> None:
        self._session: Any = session
        self._outputs = [spec.name for spec in signature.outputs]

    def run(self, inputs: Tensors) -> Tensors:
        try:
            # The arrays that come back are the caller's own: the runtime allocates them for each run.
            results = self._session.run(self._outputs, inputs)
        except Exception as error:  # the runtime's exceptions have no base of their own
            raise ExecutionFailed(
                f"ONNX Runtime failed: {_words(error)}",
                hint="Check the shapes and values of the inputs; if they are as in training, build the engine again.",
            ) from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        self._session = None


class _RuntimeRefused(Exception):
    """The runtime's own words, on one line, without paths."""


def _session(path: Path, setup: Any) -> Any:
    try:
        graph = packed.packed_graph(path)
        if graph is None:
            return ort.InferenceSession(str(path), setup, providers=["CPUExecutionProvider"])
        with packed.weights_folder(path) as folder:
            setup.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
            return ort.InferenceSession(graph, setup, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no base of their own
        raise _RuntimeRefused(_words(error).replace(str(path), "the file")) from error


def _specs(nodes: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(node.name, _dtype(node), tuple(map(_length, node.shape))) for node in nodes)


def _dtype(node: Any) -> DType:
    if node.type not in _DTYPES:
        raise _RuntimeRefused(f"{node.name!r} is of type {node.type}, which engines cannot carry")
    return _DTYPES[node.type]


def _length(dim: object) -> int:
    return dim if isinstance(dim, int) and dim >= 0 else ANY  # a symbol's name, or None


def _words(error: Exception) -> str:
    """What the runtime said, on one line: without its prefix, source file and the path of the model."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = re.sub(r"Load model from .*? failed:", "", text, flags=re.DOTALL)
    text = re.sub(r"\S*/onnxruntime/core/\S+:\d+ (?:[^()]*\([^()]*\)(?: const)? )?", "", text)
    return " ".join(text.split())[:500]


def _trim_heap() -> None:
    """Hand freed pages back to the system.

    Measured: after ResNet-50 was closed, 120 of its 208 MiB stayed with the process until glibc was told.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
