"""The scripts tell what they do before they do anything."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMANDS = sorted(path.name for path in SCRIPTS.iterdir() if path.is_file() and os.access(path, os.X_OK))


def helped(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`--help`, started elsewhere and with a Python that makes no environment."""
    return subprocess.run(
        [SCRIPTS / script, "--help"],
        cwd=folder,
        env={**os.environ, "PYTHON": "/bin/false", "JETFORGE_PYTHON": "/bin/false"},
        capture_output=True,
        text=True,
        timeout=20,
    )


@pytest.mark.parametrize("script", COMMANDS)
def test_a_script_asked_for_help_tells_what_it_does_and_does_nothing_else(script: str, tmp_path: Path) -> None:
    done = helped(script, tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert f"scripts/{script}" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", COMMANDS)
def test_the_help_names_every_option(script: str, tmp_path: Path) -> None:
    programs = re.findall(r"scripts/(\w+\.py)", (SCRIPTS / script).read_text())
    taken = {
        name
        for program in programs
        for name in re.findall(r'add_argument\(\s*"(--[a-z-]+)"', (SCRIPTS / program).read_text())
    }

    assert taken - set(re.findall(r"--[a-z-]+", helped(script, tmp_path).stdout)) == set()
