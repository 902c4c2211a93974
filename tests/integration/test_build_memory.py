"""Builds whose process is killed, as the system does when memory runs out: tried again with less, then given up."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from app.build import tries
from app.build.workdir import BuildSpec, ProgressLine, WorkDir
from app.domain.builds import BuildOptions, BuiltEngine
from app.domain.jobs import EventKind, Failure, Stage
from tests import networks

# Runs in the build child: while it compiles with more than 256 MiB of workspace it ends as by the system's hand.
GREEDY = """
import os, signal, sys
if "app.build" in sys.orig_argv:
    from app.backends.onnxruntime import OnnxRuntime
    compile_engine = OnnxRuntime.compile
    def compile(self, onnx, options, *arguments, **named):
        if options.workspace_mib is None or options.workspace_mib > 256:
            {end}
        compile_engine(self, onnx, options, *arguments, **named)
    OnnxRuntime.compile = compile
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
ASKED = BuildOptions(simplify=False)
HALF = replace(ASKED, workspace_mib=512)
LEAST = replace(ASKED, workspace_mib=256, optimization_level=1)


class Build:
    def __init__(self, root: Path) -> None:
        self.work = WorkDir(root / "work")
        self.lines: list[ProgressLine] = []

    def run(self, *lighter: BuildOptions) -> tries.Outcome:
        self.work.create(networks.saved(networks.doubled(), self.work.root.parent))
        spec = BuildSpec("job", "onnxruntime", ASKED, batch_rows_max=32)
        return tries.run(self.work, spec, 120, lighter, self.lines.append, lambda: False)

    def told(self, kind: EventKind) -> list[str]:
        return [line.message for line in self.lines if line.kind is kind]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def end_with(statement: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sitecustomize.py").write_text(GREEDY.format(end=statement))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))


def test_a_killed_build_is_tried_again_with_less_until_it_fits_and_says_so(build, tmp_path, monkeypatch):
    end_with(KILLED, tmp_path, monkeypatch)

    built = build.run(HALF, LEAST)

    assert isinstance(built, BuiltEngine)
    assert "workspace_mib=256, optimization_level=1" in built.warnings[0]
    first, second = build.told(EventKind.WARNING)
    assert "again with workspace_mib=512." in first and "optimization_level=1" in second
    assert sum(line.stage is Stage.COMPILE and line.kind is EventKind.STAGE for line in build.lines) == 3
    assert first in build.work.log.read_text() and second in build.work.log.read_text()


def test_a_build_that_is_killed_with_the_least_as_well_fails_and_says_what_was_tried(build, tmp_path, monkeypatch):
    end_with(KILLED, tmp_path, monkeypatch)

    failure = build.run(HALF)

    assert isinstance(failure, Failure) and failure.code == "build_killed"
    assert "want of memory" in failure.message and "workspace_mib=512" in failure.message
    assert "max_shapes" in failure.hint and "swap" in failure.hint


def test_a_backend_with_nothing_to_lower_fails_at_once_and_says_so(build, tmp_path, monkeypatch):
    end_with(KILLED, tmp_path, monkeypatch)

    failure = build.run()

    assert isinstance(failure, Failure) and failure.code == "build_killed"
    assert "no option that takes less" in failure.message
    assert not build.told(EventKind.WARNING)


def test_a_refused_allocation_counts_as_want_of_memory(build, tmp_path, monkeypatch):
    end_with("raise MemoryError", tmp_path, monkeypatch)

    built = build.run(LEAST)
    failure = build.run()

    assert isinstance(built, BuiltEngine)
    assert isinstance(failure, Failure) and failure.code == "build_out_of_memory"


def test_another_failure_is_not_tried_again(build, tmp_path, monkeypatch):
    end_with("sys.exit(7)", tmp_path, monkeypatch)

    failure = build.run(LEAST)

    assert isinstance(failure, Failure) and failure.code == "build_crashed"
    assert not build.told(EventKind.WARNING)
