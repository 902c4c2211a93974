"""The worker as a process: it ends when it is told to, however often."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from app.presence import workers_alive
from app.worker import thin
from tests.service import ROOT


def started(data_dir: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "app", "work", "--data-dir", str(data_dir)]
    worker = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not workers_alive(data_dir / "workers"):
        assert time.monotonic() < end and worker.poll() is None
        time.sleep(0.02)
    return worker


WAITING_UNDER_SIGNALS = """
import signal
from {module} import {kind} as Flag

flag = Flag()
signal.signal(signal.SIGALRM, lambda number, frame: flag.set())
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
for _ in range(20_000):
    flag.wait(0)
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def waits_under_signals(module: str, kind: str) -> bool:
    """Whether a flag that a signal handler sets again and again can be waited for meanwhile."""
    code = WAITING_UNDER_SIGNALS.format(module=module, kind=kind)
    try:
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def test_the_stop_flag_survives_being_set_by_a_signal_handler() -> None:
    assert waits_under_signals("app.worker", "StopFlag")


def test_a_worker_that_is_told_to_stop_ends_cleanly(tmp_path: Path) -> None:
    worker = started(tmp_path)

    worker.terminate()

    assert worker.wait(30) == 0
    assert workers_alive(tmp_path / "workers") == 0


def test_a_killed_worker_is_known_to_be_dead_at_once(tmp_path: Path) -> None:
    worker = started(tmp_path)

    worker.kill()
    worker.wait(30)

    assert workers_alive(tmp_path / "workers") == 0


def test_what_builds_keep_is_thinned_from_what_was_not_used_for_longest(tmp_path: Path) -> None:
    for age, name in enumerate(("newest", "middle", "oldest")):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))

    thin(tmp_path, 250)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle", "newest"]
    thin(tmp_path / "not there", 0)
