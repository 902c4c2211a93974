"""ONNX → plan, by NVIDIA's command trtexec: the same builder in a process of its own."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.backends.base import Progress
from app.backends.tensorrt import versions
from app.backends.tensorrt.messages import explained, words
from app.backends.tensorrt.request import Request
from app.domain.builds import BuildOptions, Precision
from app.domain.errors import BuildOutOfMemory, CompileFailed
from app.domain.tensors import ShapeRange, shape_text

log = logging.getLogger(__name__)

_PLACES = ("/usr/src/tensorrt/bin", "/usr/local/tensorrt/bin")  # where the Jetson and NVIDIA's images have it
_LINES_KEPT = 100
_API = "Build with builder=api."


def build(
    trt: Any, request: Request, ranges: Mapping[str, ShapeRange], engine: Path, timing: Path, progress: Progress
) -> None:
    """Write the engine file.

    Args:
        ranges: of every dynamic input.
        timing: the timing cache, which trtexec makes and renews itself.

    Raises:
        CompileFailed: there is no trtexec, it cannot do what is asked, or it failed.
    """
    _refuse_impossible(trt, request, ranges)
    calibration = _calibration(trt, request)
    command = found_command()
    flags = arguments(trt, offered_flags(command), request.options, ranges, calibration=calibration)
    files = [f"--onnx={request.onnx.path}", f"--saveEngine={engine}", f"--timingCacheFile={timing}"]
    run(command, [*files, *flags], progress)


def found_command() -> Path:
    """Where trtexec is.

    Raises:
        CompileFailed: nowhere.
    """
    found = shutil.which("trtexec", path=os.pathsep.join((os.environ.get("PATH", ""), *_PLACES)))
    if found is None:
        raise CompileFailed(
            f"trtexec is neither on PATH nor in {_PLACES[0]}.",
            hint="Install it (on a Jetson: apt install libnvinfer-bin), or build with builder=api.",
        )
    return Path(found)


def offered_flags(command: Path) -> str:
    """The command's own help: says which flags this version has."""
    ran = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=120, check=False)
    return ran.stdout + ran.stderr


def arguments(
    trt: Any,
    offered: str,
    options: BuildOptions,
    ranges: Mapping[str, ShapeRange],
    *,
    calibration: Path | None,
) -> list[str]:
    """What the options are called in this version of the command.

    Args:
        offered: the command's help.
        calibration: a calibration cache; trtexec can read one, but not make one.

    Raises:
        CompileFailed: this version has no flag for an option.
    """
    flags = [*_precision(options.precision, offered), *_shapes(ranges), *_quick(offered)]
    if not options.tf32:
        flags.append("--noTF32")
    if options.workspace_mib is not None:
        flags.append(f"--memPoolSize=workspace:{options.workspace_mib}")
    if options.optimization_level is not None:
        flags.append(_offered(f"--builderOptimizationLevel={options.optimization_level}", offered))
    if options.tactic_sources is not None:
        flags.append(f"--tacticSources={_sources(trt, options.tactic_sources)}")
    if options.dla_core is not None:
        flags += [f"--useDLACore={options.dla_core}", "--allowGPUFallback"]
    if calibration is not None:
        flags.append(_offered(f"--calib={calibration}", offered))
    return flags


def run(command: Path, flags: list[str], progress: Progress) -> None:
    """Run it to its end; what it says goes to the log.

    Raises:
        CompileFailed: it failed; its words are in the message.
    """
    progress.step("trtexec builds the engine")
    log.info("running %s", " ".join([command.name, *flags]))
    last: deque[str] = deque(maxlen=_LINES_KEPT)
    with subprocess.Popen(
        [command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            log.info("trtexec: %s", line.rstrip())
            last.append(line.strip())
    if process.returncode != 0:
        raise _failed(process.returncode, list(last))


def _refuse_impossible(trt: Any, request: Request, ranges: Mapping[str, ShapeRange]) -> None:
    """Refuse what the command cannot build though the API can."""
    if ranges and request.contexts > 1 and not versions.shares_profiles(trt):
        raise CompileFailed(
            f"trtexec of TensorRT {trt.__version__} makes one optimisation profile; {request.contexts} contexts need"
            " one each.",
            hint=f"{_API} Or export the model with fixed shapes.",
        )
    if request.onnx.int64_names() and not versions.has_int64(trt):
        raise CompileFailed(
            f"trtexec of TensorRT {trt.__version__} makes 32-bit integers of the model's int64 inputs and outputs.",
            hint=f"{_API} It converts them.",
        )


def _calibration(trt: Any, request: Request) -> Path | None:
    """The calibration cache of an earlier build: trtexec can read one, but not make one."""
    if request.options.precision is not Precision.INT8 or request.calibration is None:
        return None
    kept = request.calibration_file(trt, request.calibration)
    if not kept.exists():
        raise CompileFailed(
            "trtexec reads a calibration cache but cannot make one, and there is none of this model and these samples.",
            hint="Build once with builder=api, which leaves the cache; or use int8_method=qdq.",
        )
    return kept


def _precision(precision: Precision, offered: str) -> Iterator[str]:
    """Flags of the precision; where there are none any more, the graph carries it."""
    if precision is not Precision.FP32 and "--fp16" in offered:
        yield "--fp16"
    if precision is Precision.INT8 and "--int8" in offered:
        yield "--int8"


def _shapes(ranges: Mapping[str, ShapeRange]) -> Iterator[str]:
    for bound in ("min", "opt", "max") if ranges else ():
        shapes = (f"{name}:{shape_text(getattr(allowed, bound))}" for name, allowed in ranges.items())
        yield f"--{bound}Shapes={','.join(shapes)}"


def _quick(offered: str) -> Iterator[str]:
    """Leave out the benchmark after the build."""
    flag = next((flag for flag in ("--skipInference", "--buildOnly") if flag in offered), None)
    if flag is not None:
        yield flag


def _sources(trt: Any, names: tuple[str, ...]) -> str:
    return ",".join(f"{'+' if name in names else '-'}{name}" for name in trt.TacticSource.__members__)


def _offered(flag: str, offered: str) -> str:
    name = flag.split("=")[0]
    if name not in offered:
        raise CompileFailed(f"This trtexec has no flag {name}.", hint=f"{_API} Or leave the option out.")
    return flag


def _failed(status: int, lines: list[str]) -> CompileFailed | BuildOutOfMemory:
    if status < 0:
        lines = [*lines, f"signal {-status}"]
    errors = [line for line in lines if "[E]" in line] or lines[-1:]
    known = explained([*errors, *lines])
    text = f"{known.cause} " if known else ""
    said = words([line.split("[E]")[-1].strip() for line in errors]) or "nothing"
    kind = BuildOutOfMemory if known is not None and known.is_memory else CompileFailed
    return kind(f"{text}trtexec ended with status {status} and said: {said}", hint=known.fix if known else _API)
