"""The TensorRT backend over the real bindings of one version: `python -m tests.trt_conformance VERSION SCENARIO`.

Run with the folder of scripts/trt_bindings.py on PYTHONPATH. A process imports one TensorRT only, so each version has
its own.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import tensorrt
from onnx import TensorProto

from app.backends.tensorrt import versions
from app.backends.tensorrt.backend import TensorRT
from app.backends.tensorrt.runtime import header_of
from app.build.appraiser import appraise
from app.domain.builds import BuildOptions, Int8Method, Precision, Ranging
from app.domain.errors import (
    BuildOutOfMemory,
    CompileFailed,
    EngineStale,
    EngineUnloadable,
    ExecutionFailed,
    OperatorUnsupported,
)
from app.domain.tensors import DType, ShapeRange, Tensors
from tests import networks
from tests.fake_cuda import FakeGpu
from tests.trt_stage import PLAN, ROWS_MAX, SCRATCH_BYTES, Stage

WIDE = {"x": ShapeRange((1, 4), (4, 4), (ROWS_MAX, 4))}


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(text)


class TenRows:
    """Samples that fit the network; `broken` ones fail at the second batch."""

    count = 10
    key = "ten rows"

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken

    def batches(self, rows: int) -> Iterator[Tensors]:
        for start in range(0, self.count, rows):
            if self.broken and start:
                raise ValueError("the second image does not decode")
            yield {"x": np.arange(start * 4, (start + rows) * 4, dtype=np.float32).reshape(rows, 4)}


class Trial:
    """One backend over one stage, in a folder of its own."""

    def __init__(self, folder: Path, **stage: bool) -> None:
        self.folder = folder
        self.gpu = FakeGpu()
        self.stage = Stage(tensorrt, self.gpu, **stage)
        self.told = Told()
        self.backend = TensorRT(trt=self.stage, driver=self.gpu.driver, libcuda=self.gpu.libcuda)
        self.engine = folder / "engine.trt"

    def compile(
        self, model: Any = None, calibration: Any = None, ranges: Any = WIDE, rows_max: int = ROWS_MAX, **options: Any
    ) -> None:
        path = networks.saved(model or networks.doubled(), self.folder)
        cache = self.folder / "cache"
        asked = (path, BuildOptions(**options), ranges, self.engine, self.told)
        self.backend.compile(*asked, calibration=calibration, cache=cache, rows_max=rows_max)

    def ended(self) -> None:
        self.gpu.assert_all_given_back()
        self.stage.assert_calls_fit()


def every_option(trial: Trial) -> None:
    sources = ("JIT_CONVOLUTIONS", "EDGE_MASK_CONVOLUTIONS")
    trial.compile(workspace_mib=64, tactic_sources=sources, optimization_level=2)

    config, trt = trial.stage.config, tensorrt
    config.set_memory_pool_limit.assert_called_once_with(trt.MemoryPoolType.WORKSPACE, 64 << 20)
    config.set_tactic_sources.assert_called_once_with(
        sum(1 << int(getattr(trt.TacticSource, name)) for name in sources)
    )
    assert config.builder_optimization_level == 2
    assert trial.engine.read_bytes() == PLAN
    assert trial.stage.flags == set()  # TF32 is cleared
    assert [path.read_bytes() for path in (trial.folder / "cache").glob("timing-*.cache")] == [b"measured"]


def no_tactic_sources(trial: Trial) -> None:
    trial.compile(tactic_sources=(), tf32=True)

    trial.stage.config.set_tactic_sources.assert_called_once_with(0)
    assert trial.stage.flags == {"TF32"}


def half(trial: Trial) -> None:
    trial.compile(precision=Precision.FP16)

    assert trial.stage.flags == ({"FP16"} if hasattr(tensorrt.BuilderFlag, "FP16") else set())
    assert trial.backend.fp16_in_graph is not hasattr(tensorrt.BuilderFlag, "FP16")


def calibrated(trial: Trial) -> None:
    if Int8Method.CALIBRATOR not in trial.backend.int8_methods:
        with_error(CompileFailed, lambda: trial.compile(calibration=TenRows(), precision=Precision.INT8))
        return
    for ranging in (None, Ranging.MINMAX):
        trial.stage.calibrated.clear()
        trial.compile(calibration=TenRows(), precision=Precision.INT8, int8_ranging=ranging)
        assert np.array_equal(np.concatenate(trial.stage.calibrated).ravel(), np.arange(40)), "a sample is missing"
        assert trial.stage.flags == {"INT8", "FP16"}
    trial.stage.calibrated.clear()
    trial.compile(calibration=TenRows(), precision=Precision.INT8)
    assert not trial.stage.calibrated, "the kept calibration was not used"


def failed_calibration(trial: Trial) -> None:
    if Int8Method.CALIBRATOR in trial.backend.int8_methods:
        samples = TenRows(broken=True)
        with_error(ValueError, lambda: trial.compile(calibration=samples, precision=Precision.INT8))
        assert not list((trial.folder / "cache").glob("calibration-*"))


def quantised(trial: Trial) -> None:
    trial.compile(precision=Precision.INT8)

    assert trial.stage.flags == ({"INT8", "FP16"} if hasattr(tensorrt.BuilderFlag, "INT8") else set())


def unquantised(trial: Trial) -> None:
    with_error(CompileFailed, lambda: trial.compile(precision=Precision.INT8))


def profiles(trial: Trial) -> None:
    trial.compile(ranges={})

    shared = versions.shares_profiles(tensorrt)
    assert trial.stage.profiles == (1 if shared else 4)
    config = trial.stage.config
    previewed = hasattr(tensorrt.PreviewFeature, "PROFILE_SHARING_0806")
    assert config.set_preview_feature.called is previewed


def batches(trial: Trial) -> None:
    """The largest batch of the profile is the one that was told, where nobody asked for shapes."""
    trial.compile(ranges={}, rows_max=24)

    maximum = trial.stage.profile.set_shape.call_args.args[3]
    assert maximum == (24, 4)


def opsets(trial: Trial) -> None:
    major = int(tensorrt.__version__.split(".")[0])
    assert trial.backend.opset_max == {8: 17, 10: 20, 11: 25}[major]


def own_profiles(trial: Trial) -> None:
    """As 8.5, which cannot share a profile."""
    if not hasattr(tensorrt.ICudaEngine, "num_bindings"):
        return
    trial.compile()
    assert trial.stage.profiles == 4
    with closing(trial.backend.load(trial.engine)) as engine, ExitStack() as opened:
        contexts = [opened.enter_context(closing(engine.open_context())) for _ in range(4)]
        with_error(EngineUnloadable, engine.open_context)
        contexts[2].close()
        opened.pop_all()
        again = engine.open_context()
        assert (again.run({"x": np.ones((1, 4), np.float32)})["y"] == 2).all()
        for context in (*contexts[:2], contexts[3], again):
            context.close()


def dla(trial: Trial) -> None:
    trial.compile(precision=Precision.FP16, dla_core=1, ranges={})

    assert trial.stage.config.default_device_type == tensorrt.DeviceType.DLA
    assert trial.stage.config.DLA_core == 1
    assert trial.backend.dla_cores == 2
    assert "GPU_FALLBACK" in trial.stage.flags
    with_error(CompileFailed, lambda: trial.compile(precision=Precision.FP16, dla_core=2))
    with closing(trial.backend.load(trial.engine)):
        assert trial.stage.runtime.DLA_core == 1
    for core, is_there in (("0", True), ("2", False)):  # as Ultralytics writes it
        trial.engine.write_bytes(header_of(core) + PLAN)
        if is_there:
            trial.backend.load(trial.engine).close()
            assert trial.stage.runtime.DLA_core == 0
        else:
            with_error(EngineUnloadable, lambda: trial.backend.load(trial.engine))


def refused_build(trial: Trial) -> None:
    trial.stage.build_fails = "Could not find any implementation for node /conv/Conv."
    error = with_error(CompileFailed, trial.compile)

    assert "/conv/Conv" in error.detail and "workspace_mib" in error.hint


def lighter_builds(trial: Trial) -> None:
    trial.stage.build_fails = "[defaultAllocator.cpp::allocateAsync::48] Error Code 2: OutOfMemory (Requested amount of"
    with_error(BuildOutOfMemory, trial.compile)
    trial.stage.build_fails = ""

    assert 0 < trial.backend.free_bytes() <= trial.backend.free_device_bytes()
    half, least = trial.backend.lighter(BuildOptions())
    trial.compile(workspace_mib=least.workspace_mib, optimization_level=least.optimization_level)

    trt, size = tensorrt, trial.gpu.libcuda.gpu().memory_bytes
    assert half.workspace_mib << 20 == size // 2 and half.optimization_level is None
    trial.stage.config.set_memory_pool_limit.assert_called_once_with(trt.MemoryPoolType.WORKSPACE, size // 2)
    assert trial.stage.config.builder_optimization_level == 1


def phases(trial: Trial) -> None:
    trial.compile()

    told = any("Tactic selection" in line for line in trial.told.lines)
    assert told is hasattr(tensorrt, "IProgressMonitor")


def missing_operators(trial: Trial) -> None:
    path = networks.saved(networks.custom_operators(), trial.folder)
    error = with_error(OperatorUnsupported, lambda: trial.backend.check(path))

    assert "acme::Foo (2×)" in error.detail
    trial.backend.check(networks.saved(networks.doubled(), trial.folder))


def runs(trial: Trial) -> None:
    trial.compile()
    with ExitStack() as opened:
        engine = opened.enter_context(closing(trial.backend.load(trial.engine)))
        first, second = (opened.enter_context(closing(engine.open_context())) for _ in range(2))
        for rows in (1, 3, 3, 1, 32, 3, 3):  # grows its buffers in between
            x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + rows
            for context in (first, second):
                assert np.array_equal(context.run({"x": x})["y"], x * 2), rows
        assert trial.gpu.launches > 6
        assert first.run({"x": np.empty((0, 4), np.float32)})["y"].shape == (0, 4)
        with_error(ExecutionFailed, lambda: first.run({"x": np.empty((33, 4), np.float32)}))
        assert engine.device_bytes >= len(PLAN) + SCRATCH_BYTES + 4 * 32 * 16


def runs_without_graphs(trial: Trial) -> None:
    trial.gpu.records = False
    trial.compile()
    with closing(trial.backend.load(trial.engine)) as engine, closing(engine.open_context()) as context:
        for value in (1, 2):
            assert (context.run({"x": np.full((2, 4), value, np.float32)})["y"] == 2 * value).all()
    assert trial.gpu.launches == 0


def integers(trial: Trial) -> None:
    model = networks.same(TensorProto.INT64, ("rows", 4))
    trial.compile(model)
    with closing(trial.backend.load(trial.engine)) as engine, closing(engine.open_context()) as context:
        assert [spec.dtype for spec in (*engine.signature.inputs, *engine.signature.outputs)] == [DType.INT64] * 2
        answer = context.run({"x": np.full((1, 4), 5, np.int64)})["y"]
        assert answer.dtype == np.int64 and (answer == 10).all()
        large = np.full((1, 4), 2**40, np.int64)
        if hasattr(tensorrt.DataType, "INT64"):
            assert (context.run({"x": large})["y"] == 2**41).all()
        else:
            with_error(ExecutionFailed, lambda: context.run({"x": large}))


def unloadable(trial: Trial) -> None:
    trial.engine.write_bytes(b"hello" * 100)
    with_error(EngineUnloadable, lambda: trial.backend.load(trial.engine))

    trial.stage.load_fails = "The engine plan file is not compatible, expecting library version 8.6.1 got 8.5.3"
    error = with_error(EngineStale, lambda: trial.backend.load(trial.engine))
    assert "8.5.3" in error.detail


def ultralytics(trial: Trial) -> None:
    header = b'{"stride": 32}'
    trial.engine.write_bytes(len(header).to_bytes(4, "little") + header + PLAN)
    with closing(trial.backend.load(trial.engine)) as engine:
        assert engine.signature.inputs[0].name == "x"


def uploaded(trial: Trial) -> None:
    """As the process that tries an uploaded engine does it."""
    header = b'{"stride": 32}'
    trial.engine.write_bytes(len(header).to_bytes(4, "little") + header + PLAN)
    found = appraise(trial.backend, trial.engine)
    assert found.signature.ranges["x"].max == (ROWS_MAX, 4) and found.signature.rows_max == 1
    assert (found.problem, found.lengths, found.latency.rows) == ("", {"y": 4}, 1)
    assert found.latency.runs > 0 and found.device_bytes > len(PLAN)

    trial.engine.write_bytes(b"hello" * 100)
    with_error(EngineUnloadable, lambda: appraise(trial.backend, trial.engine))
    trial.stage.load_fails = "The engine plan file is not compatible, expecting library version 8.6.1 got 8.5.3"
    with_error(EngineStale, lambda: appraise(trial.backend, trial.engine))


def old_name(trial: Trial) -> None:
    """Fails on every version from 10: proves that a name which is gone is found."""
    config = create_autospec(tensorrt.IBuilderConfig, instance=True, spec_set=True)
    config.max_workspace_size = 1 << 20
    trial.compile()


def with_error(kind: type[Exception], work: Callable[[], object]) -> Any:
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


SCENARIOS: dict[str, tuple[Callable[[Trial], None], dict[str, bool]]] = {
    **{
        scenario.__name__: (scenario, {})
        for scenario in (
            *(
                every_option,
                no_tactic_sources,
                half,
                calibrated,
                failed_calibration,
                unquantised,
                profiles,
                batches,
                opsets,
                dla,
            ),
            *(
                refused_build,
                lighter_builds,
                phases,
                missing_operators,
                runs,
                runs_without_graphs,
                unloadable,
                ultralytics,
                uploaded,
            ),
        )
    },
    "quantised": (quantised, {"quantised": True}),
    "integers": (integers, {"integers": True}),
    "own_profiles": (own_profiles, {"exclusive": True}),
}


def main(version: str, names: list[str]) -> None:
    assert tensorrt.__version__.startswith(version), tensorrt.__version__
    for name in names or SCENARIOS:
        scenario, stage = SCENARIOS.get(name) or (globals()[name], {})
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(Path(folder), **stage)
            scenario(trial)
            trial.ended()
        print(f"passed {name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
