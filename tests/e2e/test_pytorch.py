"""What PyTorch exports, from curl to an engine that answers as PyTorch does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import DIGITS
from tests.e2e.test_main_job import heldout
from tests.service import BUILD_S, Service
from tests.torch_required import needs_torch

needs_torch()

import torch  # noqa: E402

from app.domain.builds import Tolerance  # noqa: E402
from tests.torch_networks import ResNet18, opened_here, scripted, seeded, traced  # noqa: E402

Array = np.ndarray[Any, Any]


def curl(service: Service, path: str, *arguments: str) -> Any:
    """What curl prints, as JSON."""
    command = ["curl", "-sS", "--fail-with-body", "--noproxy", "*", *arguments, f"{service.url}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def built(service: Service, file: Path, name: str, *fields: str) -> Any:
    """The engine of an upload, or the failure of its job."""
    parts = [word for field in (f"name={name}", f"model=@{file}", *fields) for word in ("-F", field)]
    job = curl(service, "/jobs", *parts)
    job = curl(service, f"/jobs/{job['id']}?wait={BUILD_S:.0f}")
    assert job["state"] == "succeeded", job
    return curl(service, f"/engines/{job['engine']}")


def inferred(service: Service, name: str, inputs: Array, folder: Path) -> Array:
    np.save(folder / "inputs.npy", inputs)
    sent = ["--data-binary", f"@{folder / 'inputs.npy'}", "-H", "Content-Type: application/x-npy"]
    answer = curl(service, f"/infer/{name}", *sent)
    (output,) = answer["outputs"].values()
    return np.array(output["data"], np.float32)


def assert_within_fp32_tolerance(found: Array, expected: Array) -> None:
    error, tolerance = found.astype(np.float64) - expected, Tolerance()
    assert 10 * np.log10((expected.astype(np.float64) ** 2).sum() / (error**2).sum()) >= tolerance.sqnr_db
    assert np.abs(error).max() <= tolerance.max_rel * np.abs(expected).max()


@pytest.mark.parametrize("file", ["digits.torchscript.pt", "digits.pt2"])
def test_the_examples_pytorch_files_go_from_curl_to_answers_equal_to_pytorchs(
    service: Service, tmp_path: Path, file: str
) -> None:
    name = file.replace("digits.", "from-").replace(".pt", "")

    engine = built(service, DIGITS / file, name)
    images, labels = heldout()
    found = np.concatenate([inferred(service, name, images[at : at + 32], tmp_path) for at in range(0, 599, 32)])

    network = opened_here(DIGITS / "digits.torchscript.pt")
    assert engine["accuracy"]["reference"].startswith("torch 2.13")
    assert engine["signature"]["inputs"][0]["shape"] == [-1, 1, 8, 8]
    assert (found.argmax(1) == labels).mean() >= 0.97
    with torch.no_grad():
        assert_within_fp32_tolerance(found, network(torch.from_numpy(images)).numpy())


@pytest.mark.parametrize("way, side, rows", [("scripted", 64, 3), ("traced", 112, 2)])
def test_a_resnet_18_goes_from_curl_to_answers_equal_to_pytorchs(
    service: Service, tmp_path: Path, way: str, side: int, rows: int
) -> None:
    network = seeded(ResNet18)
    example = torch.zeros(2, 3, side, side)
    file = scripted(network, tmp_path) if way == "scripted" else traced(network, tmp_path, example)
    inputs = np.random.default_rng(1).standard_normal((rows, 3, side, side)).astype(np.float32)

    engine = built(service, file, f"resnet-{way}", f"max_shapes={rows}x3x{side}x{side}")
    found = inferred(service, f"resnet-{way}", inputs, tmp_path)

    assert engine["accuracy"]["reference"].startswith("torch 2.13")
    with torch.no_grad():
        assert_within_fp32_tolerance(found, network(torch.from_numpy(inputs)).numpy())
