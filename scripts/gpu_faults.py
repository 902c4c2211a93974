"""What goes wrong while the service runs on a GPU, and what it makes of it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import httpx
from gpu_client import BACKEND, Check, client_of, requested, waited
from gpu_networks import DIGITS

from tests import networks
from tests.service import Service


def interrupted(client: httpx.Client, service: Service, check: Check) -> None:
    """Cancel, and kill -9 of the child, in the middle of a build."""
    model = networks.resnet18(width=48).SerializeToString()
    job = requested(client, model, "cancelled", None, "fp16")["id"]
    child = in_the_middle(client, service, job)
    started = time.monotonic()
    client.delete(f"/jobs/{job}")
    ended = waited(client, job)
    check.that("a build is cancelled in its middle", ended["state"] == "cancelled")
    service.eventually(lambda: not Path(f"/proc/{child}").exists())
    check.that(f"its child is gone after {time.monotonic() - started:.1f} s", time.monotonic() - started < 20)

    job = requested(client, networks.resnet18(width=40).SerializeToString(), "killed", None, "fp16")["id"]
    os.kill(in_the_middle(client, service, job), signal.SIGKILL)
    ended = waited(client, job)
    code = (ended["failure"] or {}).get("code")
    told = client.get(f"/jobs/{job}/log").text
    if BACKEND == "tensorrt":
        check.that("a killed build is tried again with half the workspace", "again with workspace_mib=" in told)
        check.that(f"and then built: {ended['state']} {code}", ended["state"] == "succeeded")
    else:
        check.that(f"a killed build says why: {ended['state']} {code}", code == "build_killed")
    check.that("the service still answers", client.get("/readyz").status_code == 200)


def in_the_middle(client: httpx.Client, service: Service, job: str) -> int:
    """The id of the build child once it compiles."""
    service.eventually(lambda: client.get(f"/jobs/{job}").json()["stage"] == "compile")
    child = service.running_child(client, job)
    time.sleep(1)
    return child


def uploaded(client: httpx.Client, check: Check) -> None:
    """An engine comes back as one that was built elsewhere, with and without metadata before it; a cut one does not."""
    engine = client.get("/engines/digits-fp16/file").content
    header = b'{"stride": 32}'
    whole = len(header).to_bytes(4, "little") + header + engine if BACKEND == "tensorrt" else engine
    png = (DIGITS / "test" / "00_label6.png").read_bytes()
    sent = client.post("/engines", params={"name": "uploaded"}, content=whole)
    check.that(f"an uploaded engine is taken: {sent.status_code} {sent.text[:300]}", sent.status_code == 201)
    answer = client.post("/infer/uploaded", content=png, headers={"Content-Type": "image/png"})
    is_six = answer.status_code == 200 and answer.json()["predictions"][0][0]["index"] == 6
    check.that("and reads a six as a six", is_six)
    cut = client.post("/engines", params={"name": "cut", "backend": BACKEND}, content=engine[:-100]).json()
    check.that(f"a cut one is refused: {cut.get('code')}", cut.get("code") in ("engine_rejected", "engine_crashes"))


def damaged(service: Service, check: Check) -> None:
    """An engine whose file was cut is refused, and the others go on."""
    service.stop()
    blob = engine_blob(service, "digits-int8")
    path = next(
        path for path in (service.data_dir / "artefacts").rglob("*") if path.name.endswith(blob) or blob in str(path)
    )
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-100])
    service.start()
    with client_of(service) as client:
        answer = client.post("/engines/digits-int8/load")
        check.that(f"a cut engine is refused: {answer.json().get('code')}", answer.status_code == 503)
        check.that("another engine still loads", client.post("/engines/digits-fp32/load").status_code == 200)
        service.eventually(lambda: client.post("/engines/digits-int8/load").status_code == 200, within_s=300)
        check.that("and it is served again without anybody asking", True)


def stale(service: Service, check: Check) -> None:
    """An engine of another version is built again by itself."""
    service.stop()
    with closing(sqlite3.connect(service.data_dir / "jetforge.db")) as connection, connection:
        for seq, text in connection.execute("SELECT seq, built FROM engines WHERE name = 'digits-fp32'").fetchall():
            built = json.loads(text)
            built["facts"]["backend_version"] = "8.0.0"
            connection.execute("UPDATE engines SET built = ?, key = 'old' WHERE seq = ?", (json.dumps(built), seq))
    service.start()
    with client_of(service) as client:
        first = client.post("/engines/digits-fp32/load")
        check.that(f"an older engine is stale: {first.json().get('code')}", first.json().get("code") == "engine_stale")
        service.eventually(lambda: client.post("/engines/digits-fp32/load").status_code == 200, within_s=120)
        check.that("and is served again without anybody asking", True)


def engine_blob(service: Service, name: str) -> str:
    with closing(sqlite3.connect(service.data_dir / "jetforge.db")) as connection:
        row = connection.execute("SELECT blob FROM engines WHERE name = ? ORDER BY seq DESC", (name,)).fetchone()
    return str(row[0]).removeprefix("sha256:")
