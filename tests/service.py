"""The running service, as a child process of a test: started, asked, killed, started again."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]
START_S = 60.0
BUILD_S = 120.0


class Service:
    """`jetforge serve` on a free loopback port over `data_dir`; its log goes to a file beside the data."""

    def __init__(self, data_dir: Path, *arguments: str, **settings: str) -> None:
        self.data_dir = data_dir
        self._arguments = arguments
        self._settings = {f"JETFORGE_{name.upper()}": value for name, value in settings.items()}
        self._log = data_dir.parent / f"{data_dir.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.grpc = ""  # host:port; empty: no gRPC server
        self.trusted: ssl.SSLContext | bool = True  # what `client` verifies https with

    def start(self) -> Service:
        offset = self._log.stat().st_size if self._log.exists() else 0
        command = [sys.executable, "-m", "app", "serve", "--port", "0", "--data-dir", str(self.data_dir)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self._arguments],
                cwd=ROOT,
                env={**os.environ, "JETFORGE_MIN_FREE_MIB": "64", **self._settings},
                stderr=log,
                stdout=log,
            )
        try:
            found = self.eventually(lambda: re.search(r"listening address=(\S+)", self.log[offset:]))
            self.url = found.group(1)
            self.eventually(self._is_up)
            found = re.search(r"listening for gRPC address=(\S+)", self.log[offset:])
            self.grpc = found.group(1) if found else ""
        except BaseException:
            self.kill()
            raise
        return self

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5, verify=self.trusted).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        """SIGTERM and wait; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def eventually(self, look: Callable[[], Any], within_s: float = START_S) -> Any:
        """The first true answer of `look`; fails with the service's log when there is none in time."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if found := look():
                return found
            time.sleep(0.05)
        raise AssertionError(f"it never came true; the service's log:\n{self.log[-5000:]}")

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=BUILD_S, trust_env=False, verify=self.trusted, **options)

    def build(self, client: httpx.Client, model: bytes, name: str, **fields: str) -> dict[str, Any]:
        """Request a build and wait until it has ended; the job."""
        job = client.post("/jobs", files={"model": ("model.onnx", model)}, data={"name": name, **fields})
        assert job.status_code == 202, job.text
        return self.ended(client, job.json()["id"])

    def ended(self, client: httpx.Client, job: str) -> dict[str, Any]:
        found: dict[str, Any] = client.get(f"/jobs/{job}", params={"wait": BUILD_S}).json()
        assert found["state"] not in ("queued", "running"), (found, self.log[-3000:])
        return found

    def running_child(self, client: httpx.Client, job: str) -> int:
        """The process id of the job's build child, once it runs."""

        def look() -> int | None:
            for folder in Path("/proc").glob("[0-9]*"):
                command = _command(int(folder.name))
                if b"app.build" in command and any(job.encode() in part for part in command):
                    return int(folder.name)
            return None

        found: int = self.eventually(look)
        return found

    def worker_pid(self) -> int:
        """The process id of the worker that this service started."""
        assert self.process is not None
        own = self.process.pid

        def look() -> int | None:
            return next((pid for pid in children(own) if b"work" in _command(pid)), None)

        found: int = self.eventually(look)
        return found

    def nursery_pids(self) -> list[int]:
        """The process that the service was forked into, if there is one: its command is its own."""
        assert self.process is not None
        own = self.process.pid
        return [pid for pid in children(own, own) if _command(pid) == _command(own)]

    def replica_pids(self) -> list[int]:
        """The processes that the nursery was forked into."""
        return [pid for nursery in self.nursery_pids() for pid in children(nursery) if _command(pid)]


def children(pid: int, thread: int | None = None) -> list[int]:
    """Processes that were started by a process, or by one thread of it."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*" if thread is None else str(thread)):
        with suppress(OSError):  # it has ended
            found += map(int, (task / "children").read_text().split())
    return found


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return []


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def family_bytes(pid: int, *others: int) -> int:
    """Resident memory of a process, and what others that were forked from it have beside; every page counts once."""
    forks = sum(_rollup_bytes(one, "Pss_Anon") for one in (pid, *others))
    return resident_bytes(pid) - _rollup_bytes(pid, "Anonymous") + forks


def _rollup_bytes(pid: int, name: str) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(rf"^{name}: +(\d+) kB$", rollup, re.MULTILINE)
    assert found is not None, rollup
    return int(found.group(1)) << 10
