"""The acceptance of a device, run on this one; and the image's health check, asked of a running service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.backends.cpu import cpu_name
from tests.service import ROOT, Service

RUN_S = 300
QUICK = ("--backend", "onnxruntime", "--quick", "--network", "mobilenet")


def accept(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / "device-acceptance", *arguments],
        env={**os.environ, "JETFORGE_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a report, and the run on a service of its own that wrote it."""
    folder = tmp_path_factory.mktemp("acceptance")
    slow = {"device": cpu_name(), "backend": "onnxruntime", "figures": {"mobilenet fp32": {"engine_p50_ms": 1e6}}}
    page = folder / "figures.md"
    page.write_text(f"```json\n{json.dumps(slow)}\n```\n")
    return folder, accept(*QUICK, "--output", folder, "--figures", page)


@pytest.fixture
def report(accepted: tuple[Path, subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    folder, ran = accepted
    assert ran.returncode in (0, 1), ran.stderr
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("running") / "data").start()
    yield service
    service.stop()


def test_a_device_that_does_what_is_promised_passes_every_check(
    accepted: tuple[Path, subprocess.CompletedProcess[str]], report: dict[str, Any]
) -> None:
    (result,) = report["results"]

    assert [check for check in result["checks"] if not check["passed"]] == []
    assert [check["name"] for check in result["checks"]] == [
        "builds",
        "tensors agree with the source",
        "images agree with the source",
        "answers from cold",
        "gives memory back",
        "keeps up with earlier figures",
    ]
    assert (report["passed"], accepted[1].returncode) == (True, 0)


def test_the_report_has_the_figures_of_every_way_of_asking(report: dict[str, Any]) -> None:
    figures = report["figures"]["mobilenet fp32"]

    assert 0 < figures["engine_p50_ms"] <= figures["engine_p99_ms"]
    assert 0 < figures["http_tensor_p50_ms"] <= figures["http_tensor_p99_ms"]
    assert 0 < figures["http_jpeg_p50_ms"] <= figures["http_jpeg_p99_ms"]
    assert figures["cold_ms"] > 0
    assert figures["resident_mib"] > 50
    assert figures["sqnr_db"] > 80
    assert (report["device"], report["backend"]) == (cpu_name(), "onnxruntime")


def test_the_report_for_people_says_the_same(
    accepted: tuple[Path, subprocess.CompletedProcess[str]], report: dict[str, Any]
) -> None:
    text = (accepted[0] / "report.md").read_text()

    assert text.startswith("# Device acceptance: passed")
    assert report["device"] in text
    assert "| mobilenet fp32 | builds | passed |" in text


def test_a_network_that_is_not_built_fails_and_the_report_says_why(running: Service, tmp_path: Path) -> None:
    ran = accept(*QUICK, "--url", running.url, "--output", tmp_path, "--option", "colour=blue")

    assert ran.returncode == 1
    assert re.search(r"\*\*FAILED\*\* \|.*invalid_option", (tmp_path / "report.md").read_text())


def test_a_backend_that_is_not_there_cannot_be_measured(running: Service, tmp_path: Path) -> None:
    ran = accept("--quick", "--backend", "abacus", "--url", running.url, "--output", tmp_path / "report")

    assert ran.returncode == 2
    assert "abacus" in ran.stderr
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(("is_there", "status"), [(True, 0), (False, 1)])
def test_the_images_health_check_tells_a_service_from_none(running: Service, is_there: bool, status: int) -> None:
    command = re.search(r"HEALTHCHECK.*\\\n\s+CMD (\[.*\])", (ROOT / "Dockerfile.l4t").read_text())
    assert command is not None
    port = running.url.rsplit(":", 1)[1] if is_there else "9"  # the port of discard: nobody listens

    ran = subprocess.run(
        [sys.executable, *json.loads(command.group(1))[1:]],
        env={**os.environ, "JETFORGE_PORT": port},
        capture_output=True,
        check=False,
    )

    assert ran.returncode == status
