"""ONNX → plan, by TensorRT's own builder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from app.backends.base import Progress, Samples
from app.backends.tensorrt import trtexec, versions
from app.backends.tensorrt.calibrator import Feed, calibrator_over
from app.backends.tensorrt.cuda import Cuda
from app.backends.tensorrt.driver import Gpu
from app.backends.tensorrt.listeners import Lines, Phases, logger_into, monitor_into
from app.backends.tensorrt.messages import explained, words
from app.backends.tensorrt.profiles import profile_ranges
from app.backends.tensorrt.request import Request
from app.backends.tensorrt.runtime import made, note_int64
from app.domain.builds import BuildOptions, Precision
from app.domain.errors import BuildOutOfMemory, CompileFailed
from app.domain.tensors import ShapeRange

log = logging.getLogger(__name__)

_PARSER_WORDS_MAX = 3  # errors of the parser in a message


class PlanBuilder:
    """One build. What TensorRT uses while it builds lives as long as this object."""

    def __init__(self, trt: Any, cuda: Cuda, gpu: Gpu, progress: Progress) -> None:
        self._trt = trt
        self._cuda = cuda
        self._gpu = gpu
        self._progress = progress
        self._lines = Lines()
        self._logger = logger_into(trt, self._lines, logging.INFO)
        self._phases = Phases(progress)
        trt.init_libnvinfer_plugins(self._logger, "")
        self._builder = made(trt.Builder, self._logger)
        self._network = self._builder.create_network(versions.creation_flags(trt))
        self._parser = trt.OnnxParser(self._network, self._logger)

    def supports(self, operator: str) -> bool:
        """Whether the parser has an operator of that name."""
        return bool(self._parser.supports_operator(operator))

    def plan(self, request: Request) -> Any:
        """The plan, as a buffer.

        Raises:
            CompileFailed: the parser or the builder refused; their words are in it.
            ShapesNeeded, ShapesContradict: the shapes asked for cannot be built.
        """
        self._parse(request)
        config = self._builder.create_builder_config()
        self._set_precision(config, request)
        self._set_limits(config, request.options)
        self._set_profiles(config, request)
        monitor = monitor_into(self._trt, self._phases)
        if monitor is not None:
            config.progress_monitor = monitor
        timing = self._set_timing_cache(config, request)
        if request.options.precision is Precision.INT8 and request.calibration is not None:
            return self._calibrated(config, request, request.calibration, timing)
        return self._built(config, timing)

    def plan_by_command(self, request: Request, engine: Path) -> None:
        """Let trtexec write the engine file; the parser here only tells which inputs the model has.

        Raises:
            CompileFailed, ShapesNeeded, ShapesContradict: as for `plan`.
        """
        self._parse(request)
        ranges = self._ranges(request)
        trtexec.build(self._trt, request, ranges, engine, request.timing_file(self._trt, self._gpu), self._progress)

    # --- reading ---------------------------------------------------------------------------------------------------

    def _parse(self, request: Request) -> None:
        if not self._parser.parse_from_file(str(request.onnx.path)):
            errors = [_parser_words(self._parser.get_error(index)) for index in range(self._parser.num_errors)]
            raise _failed([*errors, *self._lines.taken(every_thread=True)], "; ".join(errors[:_PARSER_WORDS_MAX]))
        doubles = request.onnx.float64_names()
        if doubles:
            raise CompileFailed(
                f"TensorRT has no 64-bit floats; {', '.join(doubles)} are.",
                hint="Cast these inputs and outputs to float32 in the network, or build for the backend onnxruntime.",
            )
        widened = request.onnx.int64_names()
        if widened and not versions.has_int64(self._trt):
            self._network.name = note_int64(widened)
            self._progress.warn(
                f"This TensorRT computes with 32-bit integers: {', '.join(widened)} are converted from and to int64."
            )

    # --- settings --------------------------------------------------------------------------------------------------

    def _set_precision(self, config: Any, request: Request) -> None:
        trt, options = self._trt, request.options
        if not options.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)  # on by default: 10-bit mantissas in the products of FP32 layers
        wanted = [*versions.flags_of(trt, options.precision), *self._flags_of_graph()]
        for flag in wanted:
            config.set_flag(flag)
        if options.precision is Precision.INT8 and request.calibration is None and not self._is_quantised():
            raise CompileFailed(
                "INT8 was asked for without calibration samples and without Q/DQ nodes in the graph.",
                hint="Send a calibration archive, or build with precision fp16.",
            )
        if request.calibration is not None and not versions.has_calibrators(trt):
            raise CompileFailed(f"TensorRT {trt.__version__} has no calibrator.", hint="Build with int8_method qdq.")

    def _flags_of_graph(self) -> list[Any]:
        """Flags without which older versions refuse what the graph itself says: half tensors, Q/DQ nodes."""
        trt = self._trt
        if not versions.has_precision_flags(trt):
            return []
        outputs = [layer.get_output(index) for layer in self._layers() for index in range(layer.num_outputs)] + [
            self._network.get_input(index) for index in range(self._network.num_inputs)
        ]
        found = []
        if any(tensor is not None and tensor.dtype == trt.DataType.HALF for tensor in outputs):
            found.append(trt.BuilderFlag.FP16)
        if self._is_quantised():
            found.append(trt.BuilderFlag.INT8)
        return found

    def _is_quantised(self) -> bool:
        return any(layer.type == self._trt.LayerType.DEQUANTIZE for layer in self._layers())

    def _layers(self) -> list[Any]:
        return [self._network.get_layer(index) for index in range(self._network.num_layers)]

    def _set_limits(self, config: Any, options: BuildOptions) -> None:
        trt = self._trt
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.tactic_sources is not None:
            config.set_tactic_sources(_bits(trt.TacticSource, options.tactic_sources))
        if options.optimization_level is not None:
            if hasattr(config, "builder_optimization_level"):
                config.builder_optimization_level = options.optimization_level
            else:
                self._progress.warn(f"TensorRT {trt.__version__} has no optimisation levels: the option is ignored.")
        if options.dla_core is not None:
            self._set_dla(config, options)

    def _set_dla(self, config: Any, options: BuildOptions) -> None:
        cores = self._builder.num_DLA_cores
        if not 0 <= (options.dla_core or 0) < cores:
            raise CompileFailed(
                f"The DLA core {options.dla_core} was asked for; this device has {cores or 'none'}.",
                hint="Leave dla_core out to build for the GPU.",
            )
        if options.precision is Precision.FP32:
            raise CompileFailed("A DLA core computes in FP16 and INT8 only.", hint="Build with precision fp16 or int8.")
        config.default_device_type = self._trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(self._trt.BuilderFlag.GPU_FALLBACK)

    def _set_profiles(self, config: Any, request: Request) -> None:
        ranges = self._ranges(request)
        if not ranges:
            return
        sharing = versions.sharing_preview(self._trt)
        if sharing is not None and not config.get_preview_feature(sharing):
            config.set_preview_feature(sharing, True)
        for _ in range(1 if versions.shares_profiles(self._trt) else request.contexts):
            self._add_profile(config, ranges)

    def _ranges(self, request: Request) -> dict[str, ShapeRange]:
        return profile_ranges(self._network, request.ranges, request.rows, dla=request.options.dla_core is not None)

    def _add_profile(self, config: Any, ranges: Mapping[str, ShapeRange]) -> None:
        profile = self._builder.create_optimization_profile()
        for name, allowed in ranges.items():
            profile.set_shape(name, allowed.min, allowed.opt, allowed.max)
        if config.add_optimization_profile(profile) < 0:
            raise _failed(self._lines.taken(every_thread=True), "the optimisation profile was refused")

    def _set_timing_cache(self, config: Any, request: Request) -> Path:
        """Let the builder reuse what it measured before on this device. A cache that it refuses is none."""
        path = request.timing_file(self._trt, self._gpu)
        kept = path.read_bytes() if path.exists() else b""
        found = config.create_timing_cache(kept)
        if found is None or not config.set_timing_cache(found, False):
            found = config.create_timing_cache(b"")
            config.set_timing_cache(found, False)
        self._timing = found  # must outlive the build
        self._lines.taken(every_thread=True)
        return path

    # --- building --------------------------------------------------------------------------------------------------

    def _calibrated(self, config: Any, request: Request, samples: Samples, timing: Path) -> Any:
        inputs = [self._network.get_input(index) for index in range(self._network.num_inputs)]
        shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
        dtypes = {tensor.name: versions.numpy_of(self._trt, tensor.dtype) for tensor in inputs}
        ranging = request.options.int8_ranging
        kept = request.calibration_file(self._trt, samples)
        with closing(Feed(self._cuda, samples, shapes, dtypes, self._phases.cancel)) as feed:
            self._set_calibration_profile(config, feed, shapes)
            calibrator = calibrator_over(self._trt, feed, ranging, kept)
            config.int8_calibrator = calibrator
            self._progress.step(
                "calibration of an earlier build is used"
                if kept.exists()
                else f"calibrating on {samples.count} samples"
            )
            try:
                return self._built(config, timing)
            finally:
                if feed.failure is not None:
                    raise feed.failure

    def _set_calibration_profile(self, config: Any, feed: Feed, shapes: Mapping[str, tuple[int, ...]]) -> None:
        dynamic = [name for name, shape in shapes.items() if min(shape, default=0) < 0]
        if not dynamic:
            return
        batch = feed.shapes()
        profile = self._builder.create_optimization_profile()
        for name in dynamic:
            profile.set_shape(name, batch[name], batch[name], batch[name])
        config.set_calibration_profile(profile)

    def _built(self, config: Any, timing: Path) -> Any:
        started = time.monotonic()
        plan = self._builder.build_serialized_network(self._network, config)
        if plan is None:
            lines = self._lines.taken(every_thread=True)
            raise _failed(lines, words(lines) or "the builder gave no reason")
        self._progress.step(f"built by TensorRT {self._trt.__version__} in {time.monotonic() - started:.1f} s")
        self._keep_timing(config, timing)
        return plan

    def _keep_timing(self, config: Any, path: Path) -> None:
        draft = path.with_suffix(".draft")
        try:
            draft.write_bytes(bytes(config.get_timing_cache().serialize()))
            draft.replace(path)
        except OSError as error:  # the next build measures again
            log.warning("the timing cache was not kept: %s", error)


def _parser_words(error: Any) -> str:
    node = error.node_name() if hasattr(error, "node_name") else ""
    return f"{error.desc()}{f' (node {node})' if node else ''}"


def _failed(lines: list[str], said: str) -> CompileFailed | BuildOutOfMemory:
    known = explained(lines)
    text = f"{known.cause} " if known else ""
    kind = BuildOutOfMemory if known is not None and known.is_memory else CompileFailed
    return kind(
        f"{text}TensorRT's words: {said}",
        hint=known.fix if known else "Build with simplify=false, or export the model with another opset.",
    )


def _bits(kind: Any, names: tuple[str, ...]) -> int:
    """The sources of these names as TensorRT's bit set.

    Raises:
        CompileFailed: one is not among those of this version.
    """
    unknown = [name for name in names if not hasattr(kind, name)]
    if unknown:
        raise CompileFailed(
            f"This TensorRT has no tactic source {', '.join(unknown)}.",
            hint=f"Choose among: {', '.join(kind.__members__)}.",
        )
    return sum(1 << int(getattr(kind, name)) for name in set(names))
