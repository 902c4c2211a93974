"""ONNX Runtime on the CPU: engines everywhere, and the reference that every engine is verified against.

An engine is the graph after the runtime's own optimisation, saved. It uses kernels and memory layouts of the CPU it
was made on, so it is valid under that CPU and that version of the runtime only.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort

from app.backends import onnxruntime_packed as packed
from app.backends.base import Backend, LoadedEngine, Progress, Samples
from app.backends.cpu import cpu_name
from app.backends.memory import available_bytes
from app.backends.onnxruntime_engine import OnnxRuntimeEngine, Sessions
from app.backends.onnxruntime_pair import graph_bytes, pair
from app.backends.onnxruntime_session import (
    FATAL,
    RuntimeRefused,
    is_ort_format,
    opened_session,
    signature_of,
    unloadable,
)
from app.backends.onnxruntime_tactics import compared, made_up
from app.domain.builds import BuildOptions, Facts, Int8Method, Placement, Precision
from app.domain.errors import CompileFailed, EngineUnloadable
from app.domain.tensors import ShapeRange

# Older ones would spin until the run ends, which on busy processors makes it take twice as long.
_KNOWS_SPIN_TIME = tuple(int(part) for part in ort.__version__.split(".")[:2]) >= (1, 27)
# A model is compiled in a second way where the memory allows it: both engines are loaded, and their weights packed.
_TRIED_BYTES_MAX, _TRIED_TIMES = 2**29, 8
_SPIN_US = 30  # from one operator to the next, where waking a thread would take longer


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
            if options.precision is Precision.FP32:
                self._try_winograd(onnx, ranges, engine, progress)
            self.load(engine).close()  # a graph can be optimised into one that the runtime then refuses
        except (RuntimeRefused, EngineUnloadable) as error:
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
            opened_session(onnx, setup)
            return
        graph, weights = engine.with_suffix(".graph"), engine.with_name(packed.WEIGHTS)
        setup.optimized_model_filepath = str(graph)
        setup.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights.name)
        setup.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        opened_session(onnx, setup)
        packed.pack(graph, weights, engine)

    def _try_winograd(self, onnx: Path, ranges: Mapping[str, ShapeRange], engine: Path, progress: Progress) -> None:
        """Compute convolutions otherwise where that is faster: in all runs, or in those of a single thread."""
        from app.backends import onnxruntime_winograd as winograd

        has_room = onnx.stat().st_size <= min(_TRIED_BYTES_MAX, self.free_bytes() / _TRIED_TIMES)
        if not (has_room and winograd.may_gain(onnx)):
            return
        with tempfile.TemporaryDirectory(dir=engine.parent) as folder:
            graph, other = Path(folder, "graph"), Path(folder, "engine")
            try:
                self.fold(onnx, graph)
                count = winograd.rewrite_file(graph)
                inputs = made_up(signature_of(self._loaded(engine, 1)), ranges) if count else []
                if not inputs:
                    return
                self._optimise(graph, other)
                ways = [partial(self._loaded, engine), partial(self._loaded, other)]
                verdict = compared(ways, inputs, sorted({1, len(self._processors)}))
            except (CompileFailed, RuntimeRefused, EngineUnloadable) as error:  # there is an engine all the same
                progress.step(f"Winograd's filtering could not be tried: {error}")
                return
            if verdict.is_always_faster:
                other.replace(engine)
            elif verdict.is_faster_with_one_thread:
                pair(engine, other)
        progress.step(f"Winograd's filtering of {count} convolutions is used {verdict}")

    def fold(self, onnx: Path, out: Path) -> None:
        """Write the graph with its constants folded and batch normalisations taken into their convolutions: plain
        ONNX, for any processor.

        Raises:
            CompileFailed: the runtime refused the model.
        """
        setup = self._setup(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
        setup.optimized_model_filepath = str(out)
        try:
            opened_session(onnx, setup)
        except RuntimeRefused as error:
            raise CompileFailed(
                f"ONNX Runtime could not fold the model's constants: {error}", hint="Export it with another opset."
            ) from error

    def load(self, engine: Path) -> LoadedEngine:
        session = self._loaded(engine, self._threads)
        try:
            signature = signature_of(session)
        except RuntimeRefused as error:
            raise unloadable(error) from error
        sessions = Sessions(partial(self._loaded, engine), graph_bytes(engine), self._threads, session)
        return OnnxRuntimeEngine(sessions, self._threads_of, self._home, signature)

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
            return opened_session(engine, setup, threads)
        except RuntimeRefused as error:
            raise unloadable(error) from error

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
        setup.log_severity_level = FATAL
        # A pool that spins after a run takes the processor from the other contexts and from the server.
        setup.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return setup
