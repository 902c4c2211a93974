"""A network whose weights lie in files beside it, sent as an archive."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import httpx
import onnx
import pytest

from tests.e2e.conftest import DIGITS
from tests.service import Service

PNG = (DIGITS / "test" / "00_label6.png").read_bytes()


def folder_with_weights(folder: Path) -> list[Path]:
    model = onnx.load(DIGITS / "digits.onnx")
    onnx.save_model(model, folder / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return [folder / "net.onnx", folder / "weights.bin"]


def zipped(files: list[Path]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for file in files:
            archive.write(file, f"export/{file.name}")
    return out.getvalue()


def tarred(files: list[Path]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for file in files:
            archive.add(file, file.name)
    return out.getvalue()


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_of_a_network_and_its_weights_is_built(
    service: Service, client: httpx.Client, tmp_path: Path, pack: object
) -> None:
    assert callable(pack)
    name = pack.__name__

    job = service.build(client, pack(folder_with_weights(tmp_path)), name)
    answer = client.post(f"/infer/{name}", content=PNG, headers={"Content-Type": "image/png"}).json()

    assert job["state"] == "succeeded", job
    assert answer["predictions"][0][0]["index"] == 6


def test_an_archive_without_the_weights_fails_by_the_name_of_the_missing_file(
    service: Service, client: httpx.Client, tmp_path: Path
) -> None:
    job = service.build(client, zipped(folder_with_weights(tmp_path)[:1]), "incomplete")

    assert (job["state"], job["failure"]["code"]) == ("failed", "external_data_missing")
    assert "weights.bin" in job["failure"]["message"]
