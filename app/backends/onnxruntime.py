"""ONNX Runtime on the CPU: engines everywhere, and the reference that every engine is verified against.

An engine is the graph after the runtime's own optimisation, saved. It uses kernels and memory layouts of the CPU it
was made on, so it is valid under that CPU and that version of the runtime only.
"""

from __future__ import annotations

import os
import platform
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort

from app import heap
from app.backends import onnxruntime_packed as packed
from app.backends.base import Backend, Context, LoadedEngine, Progress, Samples
from app.backends.cpu import cpu_name
from app.backends.memory import available_bytes
from app.domain.builds import BuildOptions, Facts, Int8Method, Placement, Precision
from app.domain.errors import CompileFailed, EngineUnloadable, ExecutionFailed
from app.domain.tensors import ANY, DType, ShapeRange, Signature, Tensors, TensorSpec

_DTYPES = {
    **{f"tensor({dtype.value})": dtype for dtype in DType},
    "tensor(float)": DType.FLOAT32,
    "tensor(double)": DType.FLOAT64,
}
_FATAL = 4  # log severity: every error is raised as well, and the log of a server is not the runtime's
# Older ones would spin until the run ends, which on busy processors makes it take twice as long.
_KNOWS_SPIN_TIME = tuple(int(part) for part in ort.__version__.split(".")[:2]) >= (1, 27)
_SPIN_US = 30  # from one operator to the next, where waking a thread would take longer

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
            threads: that share one run; None: half of the processors, or what a context is told about the others.
        """
        self._processors = sorted(os.sched_getaffinity(0))
        self._given_threads = threads
        self._threads = threads or max(1, len(self._processors) // 2)

    def facts(self) -> Facts:
        return Facts(self.name, ort.__version__, cpu_name(), platform.machine())

    def free_bytes(self) -> int:
        return available_bytes()

    def check(self, onnx: Path) -> None:
        from app.backends import onnxruntime_models  # needs the onnx package, which only the build child imports

        onnxruntime_models.check(onnx)

    def lighter(self, options: BuildOptions) -> Sequence[BuildOptions]:
        return ()  # its optimiser has no limits to set

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
        session = self._loaded(engine, self._threads)
        try:
            signature = Signature(_specs(session.get_inputs()), _specs(session.get_outputs()))
        except _RuntimeRefused as error:
            raise _unloadable(error) from error
        sessions = _Sessions(partial(self._loaded, engine), engine.stat().st_size, self._threads, session)
        return _Engine(sessions, self._threads_of, self._home, signature)

    def _loaded(self, engine: Path, threads: int) -> Any:
        # Whatever was worth optimising is optimised in the file: doing it again would only cost time.
        setup = self._setup(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
        setup.intra_op_num_threads = threads
        if self._home(threads) is not None:
            others = (str(processor + 1) for processor in self._processors[1:])  # the runtime counts from 1
            setup.add_session_config_entry("session.intra_op_thread_affinities", ";".join(others))
            if _KNOWS_SPIN_TIME:
                setup.add_session_config_entry("session.intra_op.allow_spinning", "1")
                setup.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
                setup.add_session_config_entry("session.force_spinning_stop", "1")  # at the end of each run
        if is_ort_format(engine):  # of an upload; told by its content, as stored files have no suffix
            setup.add_session_config_entry("session.load_model_format", "ORT")
        try:
            return _session(engine, setup)
        except _RuntimeRefused as error:
            raise _unloadable(error) from error

    def _threads_of(self, at_once: int | None) -> int:
        """Threads of a context that has so many at work beside it, itself counted."""
        if at_once is None or self._given_threads is not None:
            return self._threads
        return max(1, len(self._processors) // at_once)

    def _home(self, threads: int) -> int | None:
        """The processor of the thread that runs a context of so many threads; None: any.

        Where a run has all processors, each thread has one of its own: left to the system, two of them were seen to
        share one for seconds, and the run to take twice as long.
        """
        has_all = self._given_threads is None and threads == len(self._processors) > 1
        return self._processors[0] if has_all else None

    def _setup(self, level: Any) -> Any:
        setup = ort.SessionOptions()
        setup.graph_optimization_level = level
        setup.intra_op_num_threads = self._threads
        setup.inter_op_num_threads = 1
        setup.log_severity_level = _FATAL
        # A pool that spins after a run takes the processor from the other contexts and from the server.
        setup.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return setup


def is_ort_format(path: Path) -> bool:
    """Whether the file is in the runtime's own format (.ort), by its mark; one that cannot be read is not."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(8)[4:] == b"ORTM"
    return False


class _Sessions:
    """One file's sessions by their number of threads, each for as long as it has contexts.

    A session has one pool of threads, and its contexts share it, since the runtime's `run` may be called from several
    threads. A lone request is fastest with a thread on every processor, many requests with one thread each.
    """

    def __init__(self, load: Callable[[int], Any], file_bytes: int, threads: int, session: Any) -> None:
        """
        Args:
            session: the first, of so many threads.
        """
        self.file_bytes = file_bytes
        self._load = load
        self._lock = threading.Lock()
        self._sessions: dict[int, Any] = {threads: session}
        self._users: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._sessions)

    def taken(self, threads: int) -> Any:
        """A session of so many threads; those that nobody uses are given up for it."""
        with self._lock:
            if threads not in self._sessions:
                self._sessions[threads] = self._load(threads)
            self._users[threads] += 1
            self._drop_unused()
            return self._sessions[threads]

    def give(self, threads: int) -> None:
        """A context of so many threads has ended."""
        with self._lock:
            self._users[threads] -= 1
            if any(self._users.values()):
                self._drop_unused()

    def clear(self) -> None:
        self._sessions.clear()

    def _drop_unused(self) -> None:
        unused = [threads for threads in self._sessions if not self._users[threads]]
        for threads in unused:
            del self._sessions[threads]
        if unused:
            heap.trim()


class _Engine(LoadedEngine):
    is_on_cpu = True

    def __init__(
        self,
        sessions: _Sessions,
        threads_of: Callable[[int | None], int],
        home: Callable[[int], int | None],
        signature: Signature,
    ) -> None:
        self._sessions = sessions
        self._threads_of = threads_of
        self._home = home
        self._signature = signature

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def parallel_runs(self) -> int:
        return len(os.sched_getaffinity(0))

    @property
    def device_bytes(self) -> int:
        """An estimate, as the runtime does not tell: the file, and for each session the file again and 4 MiB.

        Measured growth of resident memory after runs of 1 and of 8 images with one session: ResNet-18 (file 44 MiB)
        69 and 131 MiB, ResNet-50 (file 97 MiB) 133 and 238 MiB.
        """
        sessions = max(1, len(self._sessions))
        return (1 + sessions) * self._sessions.file_bytes + sessions * 4 * 2**20

    def open_context(self, at_once: int | None = None) -> Context:
        threads = self._threads_of(at_once)
        session, give = self._sessions.taken(threads), partial(self._sessions.give, threads)
        return _Context(session, self._signature, give, self._home(threads))

    def close(self) -> None:
        self._sessions.clear()
        heap.trim()


class _Context(Context):
    def __init__(self, session: Any, signature: Signature, closed: Callable[[], None], home: int | None) -> None:
        """
        Args:
            home: the processor that the calling thread is bound to until the context closes; None: it stays free.
        """
        self._session: Any = session
        self._outputs = [spec.name for spec in signature.outputs]
        self._closed = closed
        self._allowed = os.sched_getaffinity(0) if home is not None else None
        if home is not None:
            _bind({home})

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
        if self._allowed is not None:
            _bind(self._allowed)
        self._closed()


def _bind(processors: set[int]) -> None:
    with suppress(OSError):  # they have been switched off since, and the system has found others
        os.sched_setaffinity(0, processors)


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
    except MemoryError:
        raise
    except Exception as error:  # the runtime's exceptions have no base of their own
        raise _RuntimeRefused(_words(error).replace(str(path), "the file")) from error


def _unloadable(error: _RuntimeRefused) -> EngineUnloadable:
    return EngineUnloadable(f"ONNX Runtime refused the engine: {error}", hint="Build the engine again on this device.")


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
