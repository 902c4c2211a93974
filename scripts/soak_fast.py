"""The fast clients of the soak: a process whose connections ask back to back, so that replicas take them.

A connection goes to a replica when it keeps the service's process busy, and the other clients are too slow for that.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

from lean_client import Line, Post
from soak_engines import INPUTS, SWAPPED, Truth, version
from soak_traffic import ANNOUNCED, Question, Tally, read_v2, v2

SMALL = "small"  # the engine that they ask beside SWAPPED
STRETCH_MAX = 2000  # requests, back to back
PAUSE_S_MAX = 1.5  # a replica gives back what asks nothing for a second; the service closes nothing so early
PAUSES = ["nothing", "wait", "wait in a request", "ask for what replicas have not", "give up"]
REFUSED_S = 0.05  # until a refused request is followed by the next
FRESH_S = 1.0  # so long after its build a version may go unseen
STOP_S = 120.0


class FastClients:
    """So many connections, asking until `stop`."""

    def __init__(self, url: str, small: Truth, count: int, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_ask_on, args=(end, url, small, count, seed), daemon=True)
        self._process.start()
        end.close()

    def published(self, number: int) -> None:
        """From now on (and FRESH_S) no version of SWAPPED before this one may answer."""
        self._pipe.send(number)

    def stop(self) -> Tally:
        """What they have seen. Waits for requests under way, within bounds."""
        try:
            self._pipe.send(None)
            found = self._pipe.recv() if self._pipe.poll(STOP_S) else _broken(f"still asked after {STOP_S:g} s")
        except (EOFError, OSError):
            found = _broken("broke off")
        self._process.join(1)
        self._process.kill()
        return found


def _broken(how: str) -> Tally:
    return Tally(failed=1, problems=[f"the fast clients {how}"])


@dataclass
class ReplicaUse:
    """How many connections were with replicas, sampled from the service's metrics."""

    replicas: list[int] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)

    def add(self, metrics: str) -> None:
        self.replicas.append(_gauge(metrics, "jetforge_replicas"))
        self.connections.append(_gauge(metrics, "jetforge_replica_connections"))

    def report(self) -> dict[str, Any]:
        rises = [max(0, after - before) for before, after in pairwise([0, *self.connections])]
        return {
            "replicas": max(self.replicas, default=0),
            "connections_at_most": max(self.connections, default=0),
            "taken_at_least": sum(rises),
            "samples_with_connections": sum(count > 0 for count in self.connections),
            "samples": len(self.connections),
        }

    def problems(self) -> list[str]:
        found = []
        if max(self.replicas, default=0) and not max(self.connections):
            found.append("no connection was ever with a replica")
        if self.replicas and self.replicas[-1] < max(self.replicas):
            found.append(f"of {max(self.replicas)} replicas {self.replicas[-1]} were left")
        return found


def _gauge(metrics: str, name: str) -> int:
    found = re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE)
    return int(float(found.group(1))) if found else 0


# --- in their own process --------------------------------------------------------------------------------------------


def _ask_on(pipe: Connection, url: str, small: Truth, count: int, seed: int) -> None:
    """Ask until None comes, or nobody is there any more; then tell what was seen."""
    truths, ends = _Truths(small), threading.Event()
    with ThreadPoolExecutor(count) as threads:
        clients = [_Client(url, truths, ends, seed * 1000 + number) for number in range(count)]
        asking = [threads.submit(client.run) for client in clients]
        try:
            while (number := pipe.recv()) is not None:
                truths.published(number)
        except EOFError:
            return
        finally:
            ends.set()
    together = Tally()
    for one in asking:
        together.add(one.result())
    pipe.send(together)


class _Truths:
    """What is right, and which version is too old to answer."""

    def __init__(self, small: Truth) -> None:
        self._small = small
        self._newest, self._since_s = 1, time.monotonic()

    def published(self, number: int) -> None:
        self._newest, self._since_s = number, time.monotonic()

    def oldest(self) -> int:
        """The oldest version that may answer what is sent now."""
        return self._newest - (time.monotonic() - self._since_s < FRESH_S)

    def of(self, ref: str) -> Truth | None:
        name, _, number = ref.partition(":")
        return self._small if name == SMALL else _version(int(number)) if name == SWAPPED else None


_version = lru_cache(maxsize=4)(version)


class _Client:
    """One connection after another, each for as long as it may."""

    def __init__(self, url: str, truths: _Truths, ends: threading.Event, seed: int) -> None:
        self._url = url
        self._truths = truths
        self._ends = ends
        self._chance = random.Random(seed)
        self._tally = Tally()

    def run(self) -> Tally:
        while not self._ends.is_set():
            try:
                line = Line(self._url)
                try:
                    self._use(line)
                finally:
                    line.close()
            except OSError as error:  # unannounced, whenever it comes
                self._fail(f"{type(error).__name__} {error}")
                time.sleep(REFUSED_S)
        return self._tally

    def _use(self, line: Line) -> None:
        """Until the end, or until one side gives the connection up."""
        asked = {name: [_prepared(line, name, truth, row) for row in range(INPUTS)] for name, truth in self._engines()}
        while not self._ends.is_set():
            requests = asked[self._chance.choice([SMALL, SWAPPED])]
            for _ in range(self._chance.randrange(STRETCH_MAX)):
                question, request = self._chance.choice(requests)
                if self._ends.is_set() or not self._asked(line, question, request):
                    return
            if not self._paused(line, *self._chance.choice(requests)):
                return

    def _engines(self) -> list[tuple[str, Truth]]:
        return [(ref.partition(":")[0], truth) for ref in (SMALL, f"{SWAPPED}:1") if (truth := self._truths.of(ref))]

    def _paused(self, line: Line, question: Question, request: bytes) -> bool:
        """Do what a replica gives a connection back for; whether the connection goes on."""
        what = self._chance.choice(PAUSES)
        if what == "wait":
            self._ends.wait(self._chance.random() * PAUSE_S_MAX)
        elif what == "wait in a request":
            half = self._chance.randrange(len(request))
            line.send(request[:half])
            self._ends.wait(self._chance.random() * PAUSE_S_MAX)
            return self._asked(line, question, request[half:])
        elif what == "ask for what replicas have not":
            return self._described(line, question.engine)
        elif what == "give up":
            line.send(request[: self._chance.choice([len(request) // 2, len(request)])])
            self._tally.cancelled += 1
            return False
        return True

    def _asked(self, line: Line, question: Question, request: bytes) -> bool:
        """Whether the connection stays open."""
        oldest = self._truths.oldest()
        status, head, body = line.answer(request)
        if status == 200:
            self._check(question, head, body, oldest)
        else:
            self._refused(status, head, body)
        return not _says(head, b"connection: close")

    def _described(self, line: Line, engine: str) -> bool:
        status, head, body = line.answer(f"GET /engines/{engine} HTTP/1.1\r\nHost: {line.host}\r\n\r\n".encode())
        if status == 200 and json.loads(body)["name"] == engine:
            self._tally.right["fast, other routes"] += 1
        else:
            self._fail(f"GET /engines/{engine}: {status} {body[:300]!r}")
        return not _says(head, b"connection: close")

    def _check(self, question: Question, head: bytes, body: bytes, oldest: int) -> None:
        length = int(re.findall(rb"inference-header-content-length: (\d+)", head)[0])
        ref, tensor = read_v2(length, body)
        name, _, number = ref.partition(":")
        truth = self._truths.of(ref) if name == question.engine else None
        if truth is None or not truth.is_right(question.picked, tensor):
            self._wrong(f"{ref} answered {tensor.ravel()[:5]} … to {question.path}, row {question.picked}")
        elif name == SWAPPED and int(number) < oldest:
            self._wrong(f"{ref} answered although version {oldest} was published more than {FRESH_S:g} s ago")
        else:
            self._tally.right["fast"] += 1
            if name == SWAPPED:
                self._tally.versions[ref] += 1

    def _refused(self, status: int, head: bytes, body: bytes) -> None:
        code = json.loads(body).get("code") if b"json" in head else ""
        if status == 503 and code in ANNOUNCED and _says(head, b"retry-after: "):
            self._tally.refused[code] += 1
            self._ends.wait(REFUSED_S)
        else:
            self._fail(f"{status} {body[:300]!r}")

    def _fail(self, what: str) -> None:
        self._tally.failed += 1
        self._tally.complain(f"a fast client: {what}")

    def _wrong(self, what: str) -> None:
        self._tally.wrong += 1
        self._tally.complain(f"a fast client: {what}")


def _prepared(line: Line, engine: str, truth: Truth, row: int) -> tuple[Question, bytes]:
    question = v2(engine, truth, [row])
    return question, Post(question.path, question.headers, question.content).encoded(line.host)


def _says(head: bytes, what: bytes) -> bool:
    return b"\r\n" + what in head
