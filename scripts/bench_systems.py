"""What is measured: the service, the echo, and the bare loops, each started on the server's cores and ended again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from bench_cases import Case
from bench_raw import Order
from load_generator import on_cores

from tests.service import Service, children, family_bytes

HERE = Path(__file__).parent
START_S = 60.0


class BareLoops:
    """The child of bench_raw.py."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child

    def run(self, order: Order) -> tuple[float, np.ndarray[Any, np.dtype[np.float64]]]:
        """Rows a second, and the time of each run in ms."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        self._child.stdin.flush()
        found = json.loads(self._child.stdout.readline())
        return found["per_s"], np.array(found["latencies_ms"])


@contextmanager
def bare_loops(cores: set[int]) -> Iterator[BareLoops]:
    with on_cores(cores):
        child = subprocess.Popen([sys.executable, HERE / "bench_raw.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield BareLoops(child)
    finally:
        child.kill()
        child.communicate()


@contextmanager
def asgi(app: str, server: str, cores: set[int], *, path: str = "", **environment: str) -> Iterator[tuple[int, int]]:
    """bench_asgi.py; yields its port and its process id.

    Args:
        path: folder with packages that this environment lacks.
    """
    folders = [str(HERE), str(HERE.parent), path]
    with on_cores(cores):
        child = subprocess.Popen(
            [sys.executable, HERE / "bench_asgi.py", app, server],
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(folder for folder in folders if folder)},
            stdout=subprocess.PIPE,
        )
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        _wait_for(port)
        yield port, child.pid
    finally:
        child.terminate()
        child.communicate(timeout=30)


def _wait_for(port: int) -> None:
    end_s = time.monotonic() + START_S
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
            return
        except httpx.TransportError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.1)


@contextmanager
def service(folder: Path, cores: set[int], *arguments: str) -> Iterator[Service]:
    """The service over the data in `folder`."""
    with on_cores(cores):
        running = Service(folder, *arguments).start()
    try:
        yield running
    finally:
        running.stop()


def port_of(running: Service) -> int:
    return int(running.url.rpartition(":")[2])


def pid_of(running: Service) -> int:
    assert running.process is not None
    return running.process.pid


def build(running: Service, case: Case) -> dict[str, Any]:
    """Build the case's engine through the service; its description."""
    with running.client() as client:
        job = running.build(client, case.model, case.name, **case.options)
        if job["state"] != "succeeded":
            raise RuntimeError(f"{case.name} was not built: {job['failure']}")
        engine: dict[str, Any] = client.get(f"/engines/{job['engine']}").json()
        return engine


def engine_file(running: Service, name: str, path: Path) -> Path:
    """Download an engine: on ONNX Runtime it is the optimised graph, which bare loops can run."""
    with running.client() as client:
        path.write_bytes(client.get(f"/engines/{name}/file").content)
    return path


def resident_mib(pid: int) -> float:
    """Resident memory of a process, and what its children have beside."""
    return family_bytes(*_family(pid)) / 2**20


def cpu_s(pid: int) -> float:
    """Processor time that a process and its children have used."""
    stats = (Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in _family(pid))
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    return [pid, *(one for child in children(pid) for one in _family(child))]
