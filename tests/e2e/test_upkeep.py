"""The running service cleans up after itself, and moves house as one file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import networks
from tests.e2e.conftest import DIGITS
from tests.service import Service

MODEL = (DIGITS / "digits.onnx").read_bytes()
PNG = next((DIGITS / "test").glob("*.png")).read_bytes()


def jetforge(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", *map(str, words)]
    return subprocess.run(command, cwd=DIGITS.parents[1], capture_output=True, text=True, timeout=120)


def test_old_versions_go_once_they_are_cold_and_a_backup_answers_elsewhere(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", keep_versions="1", orphan_age_s="0").start()
    try:
        with service.client() as client:
            service.build(client, MODEL, "digits")
            service.build(client, MODEL, "digits", simplify="false")
            client.post("/engines/digits:1/load").raise_for_status()
            warm = client.post("/gc", params={"dry_run": True}).json()
            client.post("/engines/digits:1/unload").raise_for_status()
            told = jetforge("gc", "--url", service.url)
            versions = [engine["ref"] for engine in client.get("/engines").json()["engines"]]
        backed_up = jetforge("backup", tmp_path / "all.tar", "--data-dir", service.data_dir)
    finally:
        service.stop()

    assert warm == {"dry_run": True, "removals": [], "freed_bytes": 0}
    assert told.returncode == 0 and "digits:1" in told.stdout and "newer versions are kept" in told.stdout
    assert versions == ["digits:2"]
    assert backed_up.returncode == 0, backed_up.stderr

    restored = jetforge("restore", tmp_path / "all.tar", "--data-dir", tmp_path / "elsewhere")
    moved = Service(tmp_path / "elsewhere").start()
    try:
        with moved.client() as client:
            answer = client.post("/infer/digits", content=PNG, headers={"Content-Type": "image/png"})
            jobs = client.get("/jobs").json()["jobs"]
    finally:
        moved.stop()
    assert restored.returncode == 0, restored.stderr
    assert answer.status_code == 200 and answer.json()["engine"] == "digits:2"
    assert [job["state"] for job in jobs] == ["succeeded", "succeeded"]


def test_a_build_from_damaged_bytes_is_refused_and_mended_by_another_upload(service: Service) -> None:
    content = networks.doubled_with_marker("damaged").SerializeToString()
    with service.client() as client:
        model = client.post("/models", content=content).json()["id"]
        stored = next((service.data_dir / "artefacts" / "objects").glob(f"??/{model.partition(':')[2]}"))
        stored.chmod(0o600)
        stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        job = client.post("/jobs", data={"name": "mended", "model_id": model}).json()
        damaged = service.ended(client, job["id"])
        client.post("/models", content=content).raise_for_status()
        client.post(f"/jobs/{job['id']}/retry").raise_for_status()
        mended = service.ended(client, job["id"])

    assert (damaged["state"], damaged["failure"]["code"]) == ("failed", "source_damaged")
    assert mended["state"] == "succeeded"
