"""Clients that go on through every fault: one builds, some infer; they keep account of what they were promised."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.service import Service

ROW = 64
NAMES = 6
BACKLOG_S = 6.0
# What a request may be refused with while the service is hurt; all else is a fault of the service.
REFUSALS = {
    503: {"engine_unloadable", "engine_stale", "engine_damaged", "disk_full", "storage_busy", "storage_unwritable",
          "shutting_down", "queue_full", "engine_too_large"},
    404: {"engine_not_found", "model_not_found"},
}  # fmt: skip
HEADERS = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


def multiplier(factor: int) -> bytes:
    """A network whose answer says which network it was: its input times the factor."""
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    graph = helper.make_graph(
        [node],
        f"times {factor}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", ROW])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", ROW])],
        [numpy_helper.from_array(np.full(ROW, factor, np.float32), "factor")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@dataclass
class Ledger:
    """What the service has promised, and what it did."""

    accepted: dict[str, tuple[str, int]] = field(default_factory=dict)  # job → engine's name and factor
    factors: dict[str, set[int]] = field(default_factory=dict)  # name → factors of all jobs asked for under it
    counts: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)  # what must not happen, and how often it did
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def complain(self, what: str) -> None:
        with self.lock:
            self.wrong[what] += 1


class Clients:
    """Threads that work with the service until they are stopped."""

    def __init__(self, service: Service, seed: int, inferers: int = 3) -> None:
        self.ledger = Ledger()
        self._service = service
        self._stop = threading.Event()
        works: list[Callable[[random.Random], None]] = [self._build, *([self._infer] * inferers)]
        self._threads = [
            threading.Thread(target=self._repeated, args=(work, random.Random(seed * 100 + number)))
            for number, work in enumerate(works)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _repeated(self, work: Callable[[random.Random], None], chance: random.Random) -> None:
        while not self._stop.is_set():
            try:
                work(chance)
            except httpx.TransportError:  # the server is down: it says nothing, so it promises nothing
                self.ledger.count("no answer")
                time.sleep(0.1)
            except Exception as error:  # a client must not end quietly
                self.ledger.complain(f"client: {type(error).__name__}: {str(error)[:300]}")
                return

    def _build(self, chance: random.Random) -> None:
        """Ask for an engine; asked again under the same key until there is an answer, as a careful client does."""
        name, factor = f"net{chance.randrange(NAMES)}", chance.randrange(2, 10_000)
        self.ledger.factors.setdefault(name, set()).add(factor)
        key = f"{chance.getrandbits(64):x}"
        while not self._stop.is_set():
            try:
                with self._service.client() as client:
                    answer = client.post(
                        "/jobs",
                        files={"model": ("model.onnx", multiplier(factor))},
                        data={"name": name},
                        headers={"Idempotency-Key": key},
                    )
            except httpx.TransportError:
                self.ledger.count("no answer")
                time.sleep(0.2)
                continue
            if answer.status_code in (200, 202):
                self.ledger.accepted[answer.json()["id"]] = (name, factor)
                self.ledger.count("jobs accepted")
                self._await_end(answer.json()["id"])
                break
            self._judge("POST /jobs", answer)
            time.sleep(0.3)

    def _await_end(self, job: str) -> None:
        """Hold back until the job has ended, or a while has passed: the backlog stays short."""
        end = time.monotonic() + BACKLOG_S
        while time.monotonic() < end and not self._stop.is_set():
            with suppress(httpx.HTTPError), self._service.client() as client:
                if client.get(f"/jobs/{job}").json().get("finished_at"):
                    return
            time.sleep(0.2)

    def _infer(self, chance: random.Random) -> None:
        name, rows = f"net{chance.randrange(NAMES)}", chance.randrange(1, 5)
        x = np.random.default_rng(chance.getrandbits(32)).integers(-8, 8, (rows, ROW)).astype(np.float32)
        with self._service.client() as client:
            for _ in range(20):
                answer = client.post(
                    f"/infer/{name}", content=x.tobytes(), headers=HEADERS, params={"shape": f"{rows}x{ROW}"}
                )
                if answer.status_code != 200:
                    self._judge(f"/infer/{name}", answer)
                    time.sleep(0.1)
                    break
                self._check(name, x, answer.content)

    def _check(self, name: str, x: np.ndarray, content: bytes) -> None:
        """The answer must be that of some network which was asked for under the name, for every row alike."""
        y = np.frombuffer(content, np.float32)
        filled = x.ravel() != 0
        if y.size != x.size or not filled.any():
            self.ledger.complain(f"/infer/{name}: {y.size} numbers for {x.size}")
            return
        factors = np.unique(y[filled] / x.ravel()[filled])
        if len(factors) != 1 or int(factors[0]) not in self.ledger.factors.get(name, set()):
            self.ledger.complain(f"/infer/{name}: answered as if by {factors[:3]}")
        self.ledger.count("answers checked")

    def _judge(self, what: str, answer: httpx.Response) -> None:
        code = answer.json().get("code") if answer.headers.get("content-type", "").endswith("json") else answer.text
        if code in REFUSALS.get(answer.status_code, ()):
            self.ledger.count(f"refused: {answer.status_code} {code}")
        else:
            self.ledger.complain(f"{what}: {answer.status_code} {str(code)[:200]}")
