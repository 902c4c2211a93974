"""The README's curl lines, run as they are written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import ROOT, Service

README = (ROOT / "README.md").read_text()


def curl_lines() -> list[str]:
    block = README.partition("<!-- tested:")[2].partition("```bash\n")[2].partition("```")[0]
    return [line for line in block.splitlines() if line.startswith("curl")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's lines need curl")
def test_the_curl_lines_do_the_whole_job(service: Service, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    answers = []
    for line in curl_lines():
        done = subprocess.run(
            ["bash", "-ec", line.replace("http://127.0.0.1:8000", service.url)],
            cwd=tmp_path,
            capture_output=True,
            timeout=120,
            check=True,
        )
        answers.append(json.loads(done.stdout))

    requested, ended, engine, one, several = answers
    assert requested["name"] == "digits"
    assert ended["state"] == "succeeded"
    assert engine["name"] == "digits"
    assert one["predictions"][0][0]["label"] == "6"
    assert [row[0]["label"] for row in several["predictions"]] == ["3", "0"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's lines need curl")
def test_the_page_of_inference_says_what_happens(service: Service, digits: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    lines = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "inference.md").read_text(), re.DOTALL)

    image, row, heads = (
        subprocess.run(
            ["bash", "-ec", block.replace("http://127.0.0.1:8000", service.url).replace("curl -s", "curl -sf")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for block in lines
    )

    assert [found["label"] for found in json.loads(image)["predictions"][0]] == ["3"]
    assert json.loads(image)["outputs"]["logits"]["shape"] == [1, 10]
    assert len(json.loads(row)["predictions"][0]) == 1 and "outputs" not in json.loads(row)
    assert "x-tensor-shape: 2x10" in heads.lower() and "x-tensor-dtype: float32" in heads.lower()
    assert (tmp_path / "logits.bin").stat().st_size == 2 * 10 * 4


def test_every_endpoint_is_in_the_readme(client: httpx.Client) -> None:
    documented = re.findall(r"`(GET|POST|DELETE) (/[^`?]*)`", README.partition("## Endpoints")[2])
    paths = client.get("/openapi.json").json()["paths"]

    routes = {(method.upper(), bare(path)) for path in paths if not path.startswith("/v2") for method in paths[path]}

    assert routes == {(method, bare(path)) for method, path in documented}


def bare(path: str) -> str:
    """The path without the names of its parameters."""
    return re.sub(r"\{\w+\}", "{}", path)
