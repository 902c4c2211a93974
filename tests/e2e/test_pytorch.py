"""What PyTorch exports, from curl to an engine that answers as PyTorch does."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest

from tests.e2e.conftest import DIGITS
from tests.e2e.test_main_job import heldout, npy
from tests.service import Service
from tests.torch_required import needs_torch

needs_torch()


@pytest.mark.parametrize("file", ["digits.torchscript.pt", "digits.pt2"])
def test_a_pytorch_file_becomes_an_engine_that_answers_as_pytorch_does(
    service: Service, client: httpx.Client, digits: dict[str, Any], file: str
) -> None:
    name = file.replace("digits.", "from-").replace(".pt", "")
    job = service.build(client, (DIGITS / file).read_bytes(), name)
    assert job["state"] == "succeeded", job
    engine = client.get(f"/engines/{job['engine']}").json()
    images, labels = heldout()

    def logits(ref: str) -> np.ndarray[Any, Any]:
        headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
        answers = [
            client.post(f"/infer/{ref}", content=npy(images[at : at + 32]), headers=headers).content
            for at in range(0, len(images), 32)
        ]
        return np.concatenate([np.load(io.BytesIO(answer)) for answer in answers])

    found = logits(job["engine"])

    assert engine["accuracy"]["reference"].startswith("torch 2.13")
    assert engine["accuracy"]["outputs"][0]["sqnr_db"] >= 80
    assert engine["signature"]["inputs"][0]["shape"] == [-1, 1, 8, 8]
    assert (found.argmax(1) == labels).mean() >= 0.97
    np.testing.assert_allclose(found, logits("digits"), rtol=1e-3, atol=1e-4)
