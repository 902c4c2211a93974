"""What build options are called on trtexec's command line, by what its help offers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from app.backends.tensorrt.trtexec import arguments
from app.domain.builds import BuildOptions, Precision
from app.domain.errors import CompileFailed
from app.domain.tensors import ShapeRange

TRT = SimpleNamespace(TacticSource=SimpleNamespace(__members__={"CUBLAS": 0, "CUDNN": 2, "JIT_CONVOLUTIONS": 4}))
OLD = "--fp16 --int8 --calib=<file> --buildOnly --noTF32"  # 8.5
MIDDLE = "--fp16 --int8 --calib=<file> --skipInference --builderOptimizationLevel --noTF32"  # 10
NEW = "--skipInference --builderOptimizationLevel --noTF32"  # 11
BATCH = {"x": ShapeRange((1, 3), (4, 3), (8, 3)), "mask": ShapeRange((1,), (4,), (8,))}


def flags(offered: str = MIDDLE, ranges: dict[str, ShapeRange] | None = None, **options: object) -> list[str]:
    return arguments(TRT, offered, BuildOptions(**options), ranges or {}, calibration=None)


def test_shapes_of_all_inputs_are_given_together():
    assert flags(ranges=BATCH)[:3] == [
        "--minShapes=x:1x3,mask:1",
        "--optShapes=x:4x3,mask:4",
        "--maxShapes=x:8x3,mask:8",
    ]


@pytest.mark.parametrize(("offered", "wanted"), [(OLD, True), (MIDDLE, True), (NEW, False)])
def test_precision_is_a_flag_only_where_the_command_has_one(offered, wanted):
    given = flags(offered, precision=Precision.INT8)

    assert ("--int8" in given and "--fp16" in given) is wanted


@pytest.mark.parametrize(("offered", "flag"), [(OLD, "--buildOnly"), (MIDDLE, "--skipInference")])
def test_the_benchmark_after_the_build_is_left_out(offered, flag):
    assert flag in flags(offered)


def test_limits_are_named_as_the_command_names_them():
    given = flags(workspace_mib=256, dla_core=1, optimization_level=3)

    assert {"--memPoolSize=workspace:256", "--useDLACore=1", "--allowGPUFallback"} < set(given)
    assert "--builderOptimizationLevel=3" in given and "--noTF32" in given


def test_every_tactic_source_that_was_not_named_is_switched_off():
    assert "--tacticSources=-CUBLAS,-CUDNN,+JIT_CONVOLUTIONS" in flags(tactic_sources=("JIT_CONVOLUTIONS",))


def test_an_option_that_this_version_lacks_is_refused():
    with pytest.raises(CompileFailed, match="builderOptimizationLevel"):
        flags(OLD, optimization_level=3)
