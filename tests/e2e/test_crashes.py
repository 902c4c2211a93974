"""kill -9 of the build child, the worker and the server: no job is lost, nothing half-written is served."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import networks
from tests.e2e.conftest import DIGITS
from tests.service import ROOT, Service

MODEL = (DIGITS / "digits.onnx").read_bytes()
PNG = next((DIGITS / "test").glob("*.png")).read_bytes()


def request(client: httpx.Client, model: bytes, name: str, **fields: str) -> str:
    job = client.post("/jobs", files={"model": model}, data={"name": name, **fields})
    assert job.status_code == 202, job.text
    return str(job.json()["id"])


def endless() -> bytes:
    return networks.endless_loop().SerializeToString()


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_killed_child_fails_its_job_with_a_reason_and_the_next_job_is_built(own_service: Service) -> None:
    own_service.start()
    with own_service.client() as client:
        job = request(client, endless(), "killed", timeout_s="100")
        os.kill(own_service.running_child(client, job), signal.SIGKILL)

        failed = own_service.ended(client, job)
        after = own_service.build(client, MODEL, "digits")

    assert (failed["state"], failed["failure"]["code"]) == ("failed", "build_killed")
    assert after["state"] == "succeeded"


def test_a_killed_worker_is_replaced_and_its_job_built_again(own_service: Service) -> None:
    own_service.start()
    with own_service.client() as client:
        job = request(client, endless(), "orphan", timeout_s="4")
        child = own_service.running_child(client, job)
        os.kill(own_service.worker_pid(), signal.SIGKILL)

        own_service.eventually(lambda: is_gone(child))
        ended = own_service.ended(client, job)

    assert ended["attempt"] == 2
    assert (ended["state"], ended["failure"]["code"]) == ("failed", "build_timed_out")


def test_a_job_whose_workers_keep_dying_fails_after_three_attempts(own_service: Service) -> None:
    own_service.start()
    with own_service.client() as client:
        job = request(client, endless(), "fatal", timeout_s="100")
        for attempt in (1, 2, 3):
            own_service.eventually(lambda n=attempt: client.get(f"/jobs/{job}").json()["attempt"] == n)
            own_service.running_child(client, job)
            os.kill(own_service.worker_pid(), signal.SIGKILL)

        ended = own_service.ended(client, job)

    assert (ended["state"], ended["failure"]["code"], ended["attempt"]) == ("failed", "worker_lost", 3)


def test_a_second_server_on_the_same_folder_is_refused_until_the_first_is_gone_however_it_went(
    own_service: Service,
) -> None:
    own_service.start()
    first = own_service.process
    assert first is not None
    command = [sys.executable, "-m", "app", "serve", "--port", "0", "--data-dir", str(own_service.data_dir)]

    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    own_service.kill()
    own_service.start()

    assert second.returncode == 1
    assert str(own_service.data_dir) in second.stderr and f"process {first.pid}" in second.stderr
    assert "--data-dir" in second.stderr


@pytest.mark.parametrize("stage", ["queued", "inspect", "compile", "verify", "publish"])
def test_a_killed_server_finishes_its_job_after_a_restart(own_service: Service, stage: str) -> None:
    own_service.start()
    with own_service.client() as client:
        job = request(client, MODEL, "digits")
        if stage != "queued":
            own_service.eventually(lambda: reached(client, job, stage))
        child_or_worker = own_service.worker_pid()
        own_service.kill()
    own_service.eventually(lambda: is_gone(child_or_worker))

    own_service.start()
    with own_service.client() as client:
        ended = own_service.ended(client, job)
        answer = client.post("/infer/digits", content=PNG, headers={"Content-Type": "image/png"})

    assert ended["state"] == "succeeded"
    assert answer.status_code == 200
    assert integrity(own_service) == "ok"
    assert not list((own_service.data_dir / "work").iterdir())


def reached(client: httpx.Client, job: str, stage: str) -> bool:
    found: dict[str, Any] = client.get(f"/jobs/{job}").json()
    return found["stage"] == stage or found["state"] == "succeeded"


def integrity(service: Service) -> str:
    with sqlite3.connect(service.data_dir / "jetforge.db") as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


def test_what_an_interrupted_upload_left_is_swept_after_a_restart(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    interrupted = Service(data_dir, "--no-worker").start()

    def slowly() -> Any:
        yield bytes(2 << 20)
        interrupted.eventually(lambda: stored(data_dir))
        interrupted.kill()
        yield bytes(2 << 20)

    with interrupted.client() as client, pytest.raises(httpx.TransportError):
        client.post("/models", content=slowly())
    assert stored(data_dir)

    restarted = Service(data_dir, orphan_age_s="0").start()

    restarted.eventually(lambda: not stored(data_dir))
    restarted.stop()


def stored(data_dir: Path) -> list[Path]:
    """Uploads, whole or not."""
    return [path for path in (data_dir / "artefacts").rglob("*") if path.is_file() and path.stat().st_size]


def test_a_stopped_service_puts_its_build_back_and_ends_cleanly(own_service: Service) -> None:
    own_service.start()
    with own_service.client() as client:
        job = request(client, endless(), "interrupted", timeout_s="3")
        child = own_service.running_child(client, job)

    assert own_service.stop() == 0
    assert is_gone(child)

    own_service.start()
    with own_service.client() as client:
        ended = own_service.ended(client, job)
    assert (ended["attempt"], ended["failure"]["code"]) == (1, "build_timed_out")
