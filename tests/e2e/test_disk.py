"""A disk that is full or read-only: refusals that say so, reads that go on, and all well again afterwards."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import DIGITS
from tests.e2e.test_crashes import integrity
from tests.service import Service

MODEL = (DIGITS / "digits.onnx").read_bytes()
PNG = next((DIGITS / "test").glob("*.png")).read_bytes()
DISK_MIB = 48
ROOM_BYTES = 128 << 10  # for the database, and less than a build of the model wants


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def full(disk: Path) -> Iterator[Service]:
    """A service with one engine, on that file system, which it may fill to the last byte."""
    running = Service(disk / "data", min_free_mib="0").start()
    with running.client() as client:
        assert running.build(client, MODEL, "digits")["state"] == "succeeded"
    yield running
    running.stop()


def answers(client: httpx.Client) -> bool:
    infer = client.post("/infer/digits", content=PNG, headers={"Content-Type": "image/png"})
    return infer.status_code == 200 and client.get("/jobs").status_code == 200


def filled(folder: Path) -> Path:
    """A file that takes all that is left."""
    path = folder / "ballast"
    with pytest.raises(OSError, match="No space left"), path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass
    return path


def test_a_full_disk_refuses_writes_by_name_and_reads_go_on(full: Service, disk: Path) -> None:
    with full.client() as client:
        ballast = filled(disk)
        upload = client.post("/models", content=MODEL + b"\0")
        answered = answers(client)
        ballast.unlink()
        after = full.build(client, MODEL, "after", simplify="false")

    assert (upload.status_code, upload.json()["code"]) == (503, "disk_full")
    assert "Retry-After" in upload.headers
    assert answered
    assert after["state"] == "succeeded"
    assert integrity(full) == "ok"
    assert not list((full.data_dir / "artefacts" / "drafts").iterdir())


def test_a_build_that_has_no_room_fails_by_name_and_succeeds_when_retried(full: Service, disk: Path) -> None:
    with full.client() as client:
        model = client.get("/models").json()["models"][-1]["id"]
        ballast = filled(disk)
        with ballast.open("r+b") as file:
            file.truncate(ballast.stat().st_size - ROOM_BYTES)
        job = client.post("/jobs", data={"name": "later", "model_id": model, "opset": "16"}).json()
        failed = full.ended(client, job["id"])
        ballast.unlink()
        client.post(f"/jobs/{job['id']}/retry").raise_for_status()
        retried = full.ended(client, job["id"])

    assert (failed["state"], failed["failure"]["code"]) == ("failed", "disk_full")
    assert retried["state"] == "succeeded"
    assert integrity(full) == "ok"
