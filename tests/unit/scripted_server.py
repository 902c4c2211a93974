"""A small real HTTP server whose answers a test writes down beforehand."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def setup(self) -> None:
        self.request.settimeout(20)
        super().setup()

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.answer(self)

    do_POST = do_DELETE = do_GET

    def body_bytes(self) -> Iterator[bytes]:
        left = int(self.headers["Content-Length"])
        while left:
            chunk = self.rfile.read(min(left, 1 << 16))
            left -= len(chunk)
            yield chunk

    def send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode())

    def send_stream(self, text: str) -> None:
        """An event stream that the server ends by closing the connection."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text.encode())
        self.close_connection = True


class ScriptedServer(ThreadingHTTPServer):
    """Answers each "METHOD /path" with its answers in turn, the last one again and again."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[str] = []  # as "METHOD /path?query"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def on(self, request: str, *answers: Answer | Any) -> None:
        """Script a request: functions are called with the handler, anything else is sent as JSON."""
        self.answers[request] = [
            answer if callable(answer) else lambda handler, value=answer: handler.send_json(value) for answer in answers
        ]

    def answer(self, handler: Handler) -> None:
        self.requests.append(f"{handler.command} {handler.path}")
        answers = self.answers[f"{handler.command} {handler.path.partition('?')[0]}"]
        (answers.pop(0) if len(answers) > 1 else answers[0])(handler)


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_sent(kind: str, /, **data: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def stage(seq: int, name: str) -> str:
    return server_sent("stage", seq=seq, job="j1", at="2026-01-01T00:00:00Z", kind="stage", stage=name, message=name)


JOB: dict[str, Any] = {
    "id": "j1",
    "name": "digits",
    "state": "queued",
    "stage": None,
    "attempt": 0,
    "engine": None,
    "reused": False,
    "failure": None,
    "model": "sha256:00",
    "calibration": None,
    "options": {},
    "cancel_requested": False,
    "created_at": "2026-01-01T00:00:00Z",
    "started_at": None,
    "finished_at": None,
    "links": {},
}
SUCCEEDED = {**JOB, "state": "succeeded", "stage": "publish", "attempt": 1, "engine": "digits:1"}
FAILED = {
    **JOB,
    "state": "failed",
    "stage": "inspect",
    "attempt": 1,
    "failure": {"code": "model_invalid", "message": "Node 3 has no input.", "hint": "Export it again.", "detail": ""},
}
ENGINE: dict[str, Any] = {
    "ref": "digits:1",
    "name": "digits",
    "version": 1,
    "precision": "fp32",
    "backend": "onnxruntime",
    "size_bytes": 40_783,
    "model": "sha256:00",
    "preprocess": {"input": "image"},
    "labels": ["zero", "one"],
    "signature": {
        "inputs": [{"name": "image", "dtype": "float32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [-1, 2]}],
        "rows_max": 32,
    },
    "accuracy": {
        "outputs": [{"name": "logits", "max_abs": 1e-6, "max_rel": 1e-7, "cosine": 1.0, "sqnr_db": 131.25}],
        "samples": 64,
        "inputs": "random",
        "reference": "onnxruntime 1.0",
        "top1_agreement": 0.9925,
    },
    "latency": {"p50_ms": 0.125, "p99_ms": 0.375, "throughput_per_s": 81_234.5, "rows": 8, "runs": 100},
    "built_in_s": 1.5,
    "warnings": ["The batch axis is fixed."],
    "facts": {},
    "created_at": "2026-01-01T00:00:00Z",
    "warm": None,
    "links": {},
}


def accept_build(server: ScriptedServer, *events: str) -> list[bytes]:
    """Have the server take a build, tell these events, and give the engine."""
    bodies: list[bytes] = []

    def take(handler: Any) -> None:
        bodies.append(b"".join(handler.body_bytes()))
        handler.send_json(JOB, status=202)

    server.on("POST /jobs", take)
    server.on("GET /jobs/j1/events", lambda handler: handler.send_stream("".join(events)))
    server.on("GET /engines/digits:1", ENGINE)
    return bodies
