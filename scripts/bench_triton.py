"""Triton Inference Server beside the service, with ONNX Runtime behind it, in the ways that suit processors."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from bench_cases import CLASSES, Case
from compiling import compiled
from load_generator import on_cores

SOURCE = Path(__file__).with_name("triton_onnxruntime.cc")
START_S = 60.0
BATCH_MAX = 32
CONFIG = """backend: "onnxruntime"
max_batch_size: {batch_max}
input [{{ name: "image" data_type: TYPE_FP32 dims: {shape} }}]
output [{{ name: "logits" data_type: TYPE_FP32 dims: [{classes}] }}]
instance_group [{{ count: {instances} kind: KIND_CPU }}]
parameters: {{ key: "intra_op_thread_count" value: {{ string_value: "{threads}" }} }}
{more}"""


@dataclass(frozen=True)
class Way:
    """How Triton is set up."""

    instances: int
    threads: int  # of one run
    joins: bool  # requests, into batches

    @property
    def name(self) -> str:
        return f"Triton, {self.instances} × {self.threads} thread(s)" + (", batching" if self.joins else "")


def ways(cores: int) -> list[Way]:
    """A run on all processors, a run on each, and the latter with requests joined."""
    return [Way(1, cores, joins=False), Way(cores, 1, joins=False), Way(cores, 1, joins=True)]


class Triton:
    """A server program and its backend."""

    def __init__(self, program: Path, backends: Path, folder: Path) -> None:
        """
        Args:
            backends: folder of Triton's backends; or a shared library of ONNX Runtime, for the one that lies here.
            folder: for files of this run.
        """
        self._program = program
        self._folder = folder
        self.version = ""  # of the runtime, where it is known
        self._backends = backends
        if backends.is_file():
            self._backends = _built(backends, folder / "backends")
            self.version = _version(backends)

    @contextmanager
    def running(self, way: Way, cases: Sequence[Case], cores: set[int]) -> Iterator[tuple[int, int]]:
        """The server with these networks; yields its port and its process id."""
        repository = self._folder / "-".join([way.name, *(case.name for case in cases)])
        for case in cases:
            _write(repository / case.name, case, way)
        port = _free_port()
        command: list[str | Path] = [
            self._program,
            "--model-repository",
            repository,
            "--backend-directory",
            self._backends,
        ]
        command += ["--http-address", "127.0.0.1", "--http-port", str(port)]
        command += ["--allow-grpc", "false", "--allow-metrics", "false", "--log-info", "false"]
        log = self._folder / f"{way.name}.log"
        with on_cores(cores), log.open("w") as out:
            environment: Mapping[str, str] = {**os.environ, "TRITON_INTRA_OP_THREADS": str(way.threads)}
            server = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        try:
            _wait_for(port, server, log)
            yield port, server.pid
        finally:
            server.terminate()
            server.wait(START_S)


def _write(folder: Path, case: Case, way: Way) -> None:
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model.onnx").write_bytes(case.model)
    more = "dynamic_batching { }\n" if way.joins else ""
    shape = list(case.inputs.shape[1:])
    fields = {"batch_max": BATCH_MAX, "shape": shape, "classes": CLASSES, "more": more}
    (folder / "config.pbtxt").write_text(CONFIG.format(**fields, instances=way.instances, threads=way.threads))


def _built(runtime: Path, folder: Path) -> Path:
    """A folder of backends with the one that lies here, over that library of ONNX Runtime."""
    target = folder / "onnxruntime" / "libtriton_onnxruntime.so"
    target.parent.mkdir(parents=True)
    library = runtime.absolute()
    compiled(SOURCE, target, "-std=c++17", "-shared", "-fPIC", library, f"-Wl,-rpath,{library.parent}")
    return folder


def _version(runtime: Path) -> str:
    class Base(ctypes.Structure):
        _fields_ = (("api", ctypes.c_void_p), ("version", ctypes.CFUNCTYPE(ctypes.c_char_p)))

    base = ctypes.CDLL(str(runtime.absolute())).OrtGetApiBase
    base.restype = ctypes.POINTER(Base)
    version: bytes = base().contents.version()
    return version.decode()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < end_s:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    sys.exit(f"Triton did not start: {log.read_text()[-3000:]}")
