"""An engine that another device or runtime made: said so, built again, served again."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import httpx

from tests.e2e.conftest import DIGITS
from tests.service import Service

PNG = next((DIGITS / "test").glob("*.png")).read_bytes()


def make_stale(database: Path) -> None:
    """As if an older runtime had built every engine."""
    with sqlite3.connect(database) as connection:
        for seq, text in connection.execute("SELECT seq, built FROM engines").fetchall():
            built = json.loads(text)
            built["facts"]["backend_version"] = "0.0.1"
            connection.execute("UPDATE engines SET built = ?, key = 'old' WHERE seq = ?", (json.dumps(built), seq))


def infer(client: httpx.Client, ref: str) -> httpx.Response:
    return client.post(f"/infer/{ref}", content=PNG, headers={"Content-Type": "image/png"})


def test_a_stale_engine_is_built_again_and_then_served_without_anybody_asking(own_service: Service) -> None:
    own_service.start()
    with own_service.client() as client:
        own_service.build(client, (DIGITS / "digits.onnx").read_bytes(), "digits")
        right = infer(client, "digits").json()["predictions"]
    own_service.stop()
    make_stale(own_service.data_dir / "jetforge.db")

    own_service.start()
    with own_service.client() as client:
        stale = infer(client, "digits")
        again = infer(client, "digits")
        jobs = client.get("/jobs").json()["jobs"]
        own_service.ended(client, jobs[0]["id"])
        own_service.eventually(lambda: infer(client, "digits").status_code == 200)
        served = infer(client, "digits").json()

    assert (stale.status_code, stale.json()["code"]) == (503, "engine_stale")
    assert "0.0.1" in stale.json()["detail"] and jobs[0]["id"] in stale.json()["hint"]
    assert again.status_code in (200, 503) and len(jobs) == 2
    assert served["engine"] == "digits:2"
    assert served["predictions"] == right


def test_a_stale_engine_is_left_alone_when_the_owner_says_so(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", rebuild_stale="false").start()
    with service.client() as client:
        service.build(client, (DIGITS / "digits.onnx").read_bytes(), "digits")
    service.stop()
    make_stale(service.data_dir / "jetforge.db")

    service.start()
    with service.client() as client:
        stale = infer(client, "digits").json()
        jobs = client.get("/jobs").json()["jobs"]
    service.stop()

    assert stale["code"] == "engine_stale" and "model_id" in stale["hint"]
    assert len(jobs) == 1
