"""TensorRT on the first GPU: the backend of a Jetson."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from app.backends.base import Backend, LoadedEngine, Progress, Samples
from app.backends.board import l4t_release
from app.backends.memory import available_bytes
from app.backends.tensorrt import versions
from app.backends.tensorrt.cuda import Cuda
from app.backends.tensorrt.driver import DriverFailed, Gpu, Libcuda
from app.backends.tensorrt.listeners import Lines, logger_into
from app.backends.tensorrt.memory_ladder import lighter
from app.backends.tensorrt.messages import explained
from app.backends.tensorrt.runtime import engine_from, header_of, made
from app.domain.builds import Builder as BuilderOption
from app.domain.builds import BuildOptions, Facts, Int8Method, Placement, Precision
from app.domain.errors import (
    BackendMissing,
    BuildOutOfMemory,
    CompileFailed,
    EngineStale,
    EngineUnloadable,
    OperatorUnsupported,
)
from app.domain.tensors import ShapeRange

_CONTEXTS = 4  # that an engine can open where each needs an optimisation profile of its own (before 8.6)


class TensorRT(Backend):
    name = "tensorrt"
    precisions = frozenset({Precision.FP32, Precision.FP16, Precision.INT8})
    placement = Placement.TENSORRT

    def __init__(
        self,
        contexts: int = _CONTEXTS,
        *,
        records: bool = True,
        trt: Any = None,
        driver: Any = None,
        libcuda: Any = None,
    ) -> None:
        """Find the libraries and the GPU; no CUDA context is made yet.

        Args:
            contexts: that every engine built here must be able to open.
            records: whether runs become CUDA graphs.
            trt: the module tensorrt; None: the installed one.
            driver: the module pycuda.driver; None: the installed one.
            libcuda: a `Libcuda`; None: the installed one.

        Raises:
            BackendMissing: TensorRT, pycuda, the driver or a GPU is not there; the hint says how to get it.
        """
        self._contexts = contexts
        self._records = records
        self._trt = trt or _imported("tensorrt")
        try:
            libcuda = libcuda or Libcuda()
            self.gpu: Gpu = libcuda.gpu()
        except DriverFailed as error:
            raise _missing(str(error)) from error
        self._cuda = Cuda(driver or _imported("pycuda.driver"), libcuda)
        self._facts = Facts(
            self.name,
            self._trt.__version__,
            self.gpu.name,
            platform.machine(),
            self.gpu.compute_capability,
            l4t_release(),
        )

    def facts(self) -> Facts:
        return self._facts

    @property
    def opset_max(self) -> int:
        return versions.opset_max(self._trt)

    @property
    def int8_methods(self) -> Sequence[Int8Method]:
        if versions.has_calibrators(self._trt):
            return (Int8Method.CALIBRATOR, Int8Method.QDQ)
        return (Int8Method.QDQ,)

    @property
    def fp16_in_graph(self) -> bool:
        return not versions.has_precision_flags(self._trt)

    @cached_property
    def dla_cores(self) -> int:
        """Deep-learning accelerators of this device; asked of TensorRT, which makes a CUDA context for it."""
        with self._cuda.pushed():
            runtime = made(self._trt.Runtime, logger_into(self._trt, Lines()))
            cores = int(runtime.num_DLA_cores)
            del runtime
        return cores

    def free_device_bytes(self) -> int:
        """Memory that the GPU has left; on a Jetson it is the processor's as well."""
        with self._cuda.pushed():
            free, _ = self._cuda.memory()
        return free

    def free_bytes(self) -> int:
        try:
            return min(self.free_device_bytes(), available_bytes())
        except self._cuda.errors:  # not even CUDA's context has room
            return 0

    def check(self, onnx: Path) -> None:
        from app.backends.tensorrt.onnxfile import OnnxFile

        with self._cuda.pushed():
            builder = self._builder(_Silent())
            missing = OnnxFile(onnx).unsupported(builder.supports, versions.plugin_names(self._trt))
            del builder
        if missing:
            names = ", ".join(f"{name} ({times}×)" for name, times in sorted(missing.items()))
            raise OperatorUnsupported(
                f"TensorRT {self._trt.__version__} lacks operators of the model: {names}.",
                hint="Export with a lower opset, replace these operators, or build for the backend onnxruntime.",
            )

    def lighter(self, options: BuildOptions) -> Sequence[BuildOptions]:
        return lighter(options, self.gpu.memory_bytes >> 20, has_levels=versions.has_levels(self._trt))

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
        from app.backends.tensorrt.onnxfile import OnnxFile
        from app.backends.tensorrt.request import Request

        cache.mkdir(parents=True, exist_ok=True)
        request = Request(OnnxFile(onnx), options, ranges, calibration, cache, self._contexts, rows_max)
        with self._cuda.pushed():
            builder = self._builder(progress)
            try:
                if options.builder is BuilderOption.TRTEXEC:
                    builder.plan_by_command(request, engine)
                else:
                    plan = builder.plan(request)
                    with engine.open("wb") as file:
                        file.write(plan)
                    del plan
            except self._cuda.errors as error:
                raise _failed(str(error)) from error
            finally:
                del builder  # its memory is given back while CUDA's context is current
        if options.dla_core is not None:
            _put_before(engine, header_of(options.dla_core))
        self._prove(engine)
        progress.step(f"built for {self.gpu.name}: {engine.stat().st_size / 2**20:,.1f} MiB")

    def load(self, engine: Path) -> LoadedEngine:
        try:
            plan = engine.read_bytes()
        except OSError as error:
            raise EngineUnloadable(
                f"The engine file cannot be read: {error.strerror}.", hint="Build the engine again on this device."
            ) from error
        return engine_from(self._trt, self._cuda, plan, records=self._records)

    def _builder(self, progress: Progress) -> Any:
        from app.backends.tensorrt.builder import PlanBuilder  # needs onnx, which only the build child imports

        return PlanBuilder(self._trt, self._cuda, self.gpu, progress)

    def _prove(self, engine: Path) -> None:
        """Open what was built: some of what an engine cannot be used for shows only then."""
        try:
            with closing(self.load(engine)) as loaded, closing(loaded.open_context()):
                pass
        except (EngineUnloadable, EngineStale) as error:
            raise CompileFailed(f"The engine was built but cannot be used: {error.detail}", hint=error.hint) from error


def _put_before(engine: Path, header: bytes) -> None:
    draft = engine.with_suffix(".draft")
    with engine.open("rb") as plan, draft.open("wb") as whole:
        whole.write(header)
        shutil.copyfileobj(plan, whole)
    draft.replace(engine)


class _Silent(Progress):
    def step(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except (ImportError, OSError) as error:  # OSError: one of its libraries cannot be opened
        raise _missing(str(error)) from error


def _missing(said: str) -> BackendMissing:
    known = explained([said])
    return BackendMissing(
        f"The backend tensorrt cannot be used here: {known.cause if known else ''} ({said})",
        hint=known.fix if known else "Check the NVIDIA driver with nvidia-smi; in a container, use --runtime nvidia.",
    )


def _failed(said: str) -> CompileFailed | BuildOutOfMemory:
    known = explained([said])
    kind = BuildOutOfMemory if known is not None and known.is_memory else CompileFailed
    return kind(
        f"{known.cause if known else 'CUDA failed.'} ({said})",
        hint=known.fix if known else "Restart the service; if it stays, restart the device.",
    )
