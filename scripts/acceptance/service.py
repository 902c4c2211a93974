"""The service under trial: one of our own on a free loopback port, or one that runs already."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
_START_S = 120.0
_STOP_S = 60.0
_LOG_BYTES = 4000


class NotStarted(Exception):
    """The service did not get ready; the end of its log is in the message."""


@dataclass(frozen=True)
class Running:
    url: str
    pid: int | None  # of the server process; None: it is not ours


@contextmanager
def started(data_dir: Path) -> Iterator[Running]:
    """Run `jetforge serve` over an empty data folder until the block ends.

    Raises:
        NotStarted: it ended, or did not get ready in two minutes.
    """
    log = data_dir.parent / "serve.log"
    command = [sys.executable, "-m", "app", "serve", "--host", "127.0.0.1", "--port", "0", "--data-dir", str(data_dir)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=_environment())
    try:
        yield Running(_address(process, log), process.pid)
    finally:
        _end(process)


def _environment() -> dict[str, str]:
    """This one's, without settings of another service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("JETFORGE_")}


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"listening address=(\S+)", log.read_text(errors="replace"))
        if found and _has_worker(found.group(1)):
            return found.group(1)
        time.sleep(0.1)
    raise NotStarted(
        f"The service did not get ready. Its log ends with:\n{log.read_text(errors='replace')[-_LOG_BYTES:]}"
    )


def _has_worker(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/readyz", timeout=5, trust_env=False)
    except httpx.TransportError:
        return False
    return answer.status_code == 200 and answer.json()["workers"] > 0


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
