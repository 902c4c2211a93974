"""The worker as a process: it ends when it is told to, however often."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from app.worker import workers_alive
from tests.service import ROOT


def started(data_dir: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "app", "work", "--data-dir", str(data_dir)]
    worker = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not workers_alive(data_dir / "workers"):
        assert time.monotonic() < end and worker.poll() is None
        time.sleep(0.02)
    return worker


def test_a_storm_of_signals_ends_a_worker_cleanly(tmp_path: Path) -> None:
    worker = started(tmp_path)

    for _ in range(200):
        if worker.poll() is not None:
            break
        worker.send_signal(signal.SIGTERM)
        time.sleep(0.001)

    assert worker.wait(30) in (0, -signal.SIGTERM)  # the last ones may come after its handler has gone
    assert workers_alive(tmp_path / "workers") == 0


def test_a_killed_worker_is_known_to_be_dead_at_once(tmp_path: Path) -> None:
    worker = started(tmp_path)

    worker.kill()
    worker.wait(30)

    assert workers_alive(tmp_path / "workers") == 0
