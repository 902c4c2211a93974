"""Fills a job table, serves it on loopback, and times the requests that a fleet dashboard polls with.

Every figure is of one keep-alive client on the same machine; /healthz, which touches nothing, is the floor.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import httpx
from sqlalchemy import insert

from app import wiring
from app.domain.builds import BuildOptions, Digest, ModelFormat, SourceModel
from app.domain.jobs import JobState
from app.settings import Settings
from app.storage import tables
from app.storage.catalogue import Catalogue
from app.storage.database import Database

REQUESTS = 500
PORT = 8765


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), port=PORT)
        wiring.prepare(settings)
        _fill(settings, count)
        command = [sys.executable, "-m", "app", "serve", "--no-worker", "--port", str(PORT), "--data-dir", folder]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            _measure(count)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def _fill(settings: Settings, count: int) -> None:
    database = Database(settings.database)
    now = datetime.now(timezone.utc)
    digest = Digest("sha256:" + "0" * 64)
    Catalogue(database).add_model(SourceModel(digest, "bench.onnx", ModelFormat.ONNX, 1, now))
    states = (JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
    row = {"model": digest, "options": BuildOptions(), "attempt": 1, "cancel_requested": False, "reused": False}
    with database.writer() as connection:
        for first in range(0, count, 10_000):
            rows = [
                {**row, "id": f"{n:016x}", "name": f"engine-{n % 50}", "state": states[n % 4], "created_at": now}
                | {"revision": 1}
                for n in range(first, min(first + 10_000, count))
            ]
            connection.execute(insert(tables.jobs), rows)
    database.close()


def _measure(count: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", trust_env=False) as client:
        _wait(client)
        tag = {"If-None-Match": client.get("/jobs?limit=50").headers["etag"]}
        oldest = f"{count // 2:016x}"
        print(f"{count} jobs, {REQUESTS} requests each, one client\n")
        print("| request | status | p50 ms | p99 ms |\n|---|---|---|---|")
        _time(client, "/healthz", {})
        _time(client, "/jobs?limit=50", {})
        _time(client, f"/jobs?limit=50&after={oldest}", {})
        _time(client, "/jobs?limit=50&state=failed&name=engine-2", {})
        _time(client, "/jobs?limit=50", tag)
        one = f"/jobs/{oldest}"
        _time(client, one, {})
        _time(client, one, {"If-None-Match": client.get(one).headers["etag"]})


def _wait(client: httpx.Client) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            client.get("/healthz")
            return
        except httpx.TransportError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _time(client: httpx.Client, path: str, headers: dict[str, str]) -> None:
    status, times_ms = 0, []
    for _ in range(REQUESTS):
        started = time.perf_counter()
        status = client.get(path, headers=headers).status_code
        times_ms.append((time.perf_counter() - started) * 1000)
    p99 = statistics.quantiles(times_ms, n=100)[98]
    print(f"| `GET {path}` | {status} | {statistics.median(times_ms):.2f} | {p99:.2f} |")


if __name__ == "__main__":
    main()
