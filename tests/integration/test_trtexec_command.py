"""trtexec as a child process: a script in its place, as the real one needs a GPU."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from app.backends.tensorrt import trtexec
from app.domain.errors import BuildOutOfMemory, CompileFailed


class Quiet:
    def step(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


def command(folder: Path, body: str) -> Path:
    path = folder / "trtexec"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_its_output_is_streamed_into_the_log(tmp_path, caplog):
    caplog.set_level(logging.INFO)

    trtexec.run(command(tmp_path, "echo '[I] === Model Options ==='; echo built $1"), ["--onnx=m"], Quiet())

    assert "trtexec: [I] === Model Options ===" in caplog.text
    assert "trtexec: built --onnx=m" in caplog.text


def test_its_failure_is_explained_by_what_it_said(tmp_path):
    body = "echo '[01/01/2026-00:00:00] [E] Error[10]: Could not find any implementation for node c1.'; exit 1"

    with pytest.raises(CompileFailed, match="no implementation for the node c1") as caught:
        trtexec.run(command(tmp_path, body), [], Quiet())

    assert "workspace_mib" in caught.value.hint


def test_that_the_system_killed_it_is_told(tmp_path):
    with pytest.raises(BuildOutOfMemory, match="want of memory"):
        trtexec.run(command(tmp_path, "kill -9 $$"), [], Quiet())


def test_it_is_found_on_the_path(tmp_path, monkeypatch):
    made = command(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    assert trtexec.found_command() == made


def test_that_it_is_nowhere_is_told_with_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CompileFailed) as caught:
        trtexec.found_command()

    assert "libnvinfer-bin" in caught.value.hint
