"""The TensorRT backend uses only what every supported version really has: run over NVIDIA's own bindings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from trt_bindings import WHEELS, BindingsUnavailable, bindings  # noqa: E402

MUST_RUN = os.environ.get("CI") == "true"
WITHOUT_WHEEL = {"8.6.1": (3, 12), "10.3.0": (3, 13)}  # first Python for which NVIDIA made none


@pytest.fixture(scope="session", params=WHEELS)
def version(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A version and the folder of its bindings."""
    first_without = WITHOUT_WHEEL.get(request.param)
    if first_without and sys.version_info[:2] >= first_without:
        pytest.skip(f"there are no bindings of TensorRT {request.param} for this Python")
    try:
        return request.param, bindings(request.param)
    except BindingsUnavailable as reason:
        if MUST_RUN:
            pytest.fail(str(reason))
        pytest.skip(str(reason))


def conformance(version: tuple[str, Path], *scenarios: str) -> subprocess.CompletedProcess[str]:
    number, folder = version
    return subprocess.run(
        [sys.executable, "-m", "tests.trt_conformance", number, *scenarios],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_builds_and_runs_with_the_names_and_signatures_of_the_version(version):
    ran = conformance(version)

    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]


def test_a_name_that_the_version_lacks_fails(version):
    ran = conformance(version, "old_name")

    if version[0].startswith("8."):  # it is still there
        assert ran.returncode == 0, ran.stderr[-3000:]
    else:
        assert ran.returncode != 0
        assert "AttributeError" in ran.stderr and "max_workspace_size" in ran.stderr
