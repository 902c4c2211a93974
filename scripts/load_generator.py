"""The load generator (loadgen.c): compiled for each run, run on a core of its own."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compiling import compiled
from numpy.typing import NDArray

SOURCE = Path(__file__).with_name("loadgen.c")
UNITS_A_MS = 10_000  # latencies come in units of 100 ns
RUN_S_MORE = 60  # a generator that hangs is ended this long after its time


@dataclass(frozen=True)
class Kept:
    """An answer as it came over the wire, and which request it answers."""

    request: int
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True)
class Load:
    """What one slice of load found."""

    per_s: float
    failed: int  # answered with another status than 200, or not at all
    finished: int  # answers of the warm-up too
    latencies_ms: NDArray[np.float64]
    busy: float  # share of its core that the generator used, 0..1
    kept: tuple[Kept, ...]


class LoadGenerator:
    """Keeps a number of connections busy, each with one request at a time."""

    def __init__(self, folder: Path, core: int) -> None:
        """
        Args:
            folder: for its files, of this run only.
            core: the processor that it runs on.
        """
        self._folder = folder
        self._core = core
        self._program = compiled(SOURCE, folder / "loadgen")

    def written(self, name: str, requests: Sequence[bytes]) -> list[Path]:
        """The requests as files that `run` takes."""
        paths = [self._folder / f"{name}-{number}.request" for number in range(len(requests))]
        for path, request in zip(paths, requests, strict=True):
            path.write_bytes(request)
        return paths

    def run(
        self, port: int, requests: Sequence[Path], clients: int, seconds: float, *, warm_s: float, keep_every: int
    ) -> Load:
        """Load a server on loopback for a while."""
        answers, latencies = self._folder / "answers", self._folder / "latencies"
        numbers = [str(number) for number in (port, clients, warm_s, seconds, keep_every)]
        command: list[str | Path] = [self._program, "load", "127.0.0.1", *numbers, answers, latencies, *requests]
        with on_cores({self._core}):
            done = subprocess.run(command, capture_output=True, timeout=warm_s + seconds + RUN_S_MORE)
        if done.returncode:
            raise RuntimeError(f"the load generator failed: {done.stderr.decode()}")
        found = json.loads(done.stdout)
        return Load(
            per_s=found["answered"] / found["seconds"],
            failed=found["failed"] + found["lost"],
            finished=found["finished"],
            latencies_ms=np.fromfile(latencies, np.uint32) / UNITS_A_MS,
            busy=found["cpu_s"] / found["seconds"],
            kept=tuple(_kept(answers.read_bytes())),
        )

    @contextmanager
    def trivial_server(self, answer: bytes, cores: set[int]) -> Iterator[int]:
        """A server in C that gives the same answer to everything; yields its port."""
        path = self._folder / "answer"
        path.write_bytes(answer)
        with on_cores(cores):
            server = subprocess.Popen([self._program, "serve", path], stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline())
        finally:
            server.kill()
            server.communicate()


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """What is started inside runs on these processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _kept(data: bytes) -> Iterator[Kept]:
    at = 0
    while at < len(data):
        request, length = struct.unpack_from("<II", data, at)
        answer = data[at + 8 : at + 8 + length]
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        yield Kept(request, int(status.split()[1]), headers, body)
        at += 8 + length
