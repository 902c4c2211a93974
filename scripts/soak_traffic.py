"""The clients of the soak: requests of every protocol, some given up in the middle, every answer checked."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from soak_engines import CLASSES, INPUTS, SWAPPED, Truth

REQUEST_S = 60.0  # an answer that takes longer is one that hangs
CANCELLED_EVERY = 15  # requests, about
CANCEL_S_MAX = 0.03
PROBLEMS_KEPT = 20
ANNOUNCED = {"queue_full", "engine_too_large"}  # what a 503 may say: come again
RAW = "application/octet-stream"
Array = NDArray[Any]


@dataclass
class Tally:
    """What all clients have seen."""

    right: Counter[str] = field(default_factory=Counter)  # by protocol
    versions: Counter[str] = field(default_factory=Counter)  # right answers of SWAPPED, by version
    refused: Counter[str] = field(default_factory=Counter)  # announced 503s, by code
    cancelled: int = 0
    wrong: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)  # the first of them, in words

    def complain(self, what: str) -> None:
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(what[:400])

    def add(self, other: Tally) -> None:
        """Take in what others have seen."""
        for own, more in ((self.right, other.right), (self.versions, other.versions), (self.refused, other.refused)):
            own.update(more)
        self.cancelled += other.cancelled
        self.wrong += other.wrong
        self.failed += other.failed
        for what in other.problems:
            self.complain(what)


@dataclass(frozen=True)
class Question:
    """One request, and the rows that it asks about."""

    protocol: str
    engine: str
    picked: list[int]
    path: str
    headers: dict[str, str]
    content: bytes


def v2(engine: str, truth: Truth, picked: list[int]) -> Question:
    """A request of the Open Inference Protocol with binary tensors, both ways."""
    rows = truth.rows[picked]
    size = {"binary_data_size": rows.nbytes}
    tensor = {"name": truth.input, "shape": rows.shape, "datatype": "FP32", "parameters": size}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return Question("v2", engine, picked, f"/v2/models/{engine}/infer", headers, head + rows.tobytes())


def read_v2(length: int, body: bytes) -> tuple[str, Array]:
    """Which engine answered, as `name:version`, and its output.

    Args:
        length: of the answer's JSON, in bytes.
    """
    head = json.loads(body[:length])
    tensor = np.frombuffer(body[length:], np.float32).reshape(head["outputs"][0]["shape"])
    return f"{head['model_name']}:{head['model_version']}", tensor


async def ask_on(url: str, truths: Mapping[str, Truth], tally: Tally, ends: asyncio.Event, seed: int) -> None:
    """One client, until `ends` is set.

    Args:
        truths: by `name` for engines of one version, by `name:version` for SWAPPED; it grows meanwhile.
    """
    chance = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_S, trust_env=False) as client:
        while not ends.is_set():
            question = _question(truths, chance)
            if chance.randrange(CANCELLED_EVERY) == 0:
                await _given_up(client, question, chance.random() * CANCEL_S_MAX)
                tally.cancelled += 1
            else:
                await _asked(client, question, truths, tally)


async def _given_up(client: httpx.AsyncClient, question: Question, after_s: float) -> None:
    request = asyncio.ensure_future(_sent(client, question))
    await asyncio.wait({request}, timeout=after_s)
    request.cancel()
    await asyncio.wait({request})
    if not request.cancelled():
        request.exception()  # the server may have been faster


async def _asked(client: httpx.AsyncClient, question: Question, truths: Mapping[str, Truth], tally: Tally) -> None:
    told = f"{question.protocol} {question.path}"
    try:
        answer = await _sent(client, question)
    except httpx.HTTPError as error:
        tally.failed += 1
        tally.complain(f"{told}: {type(error).__name__} {error}")
        return
    if answer.status_code == 503 and answer.json().get("code") in ANNOUNCED and "retry-after" in answer.headers:
        tally.refused[answer.json()["code"]] += 1
    elif answer.status_code != 200:
        tally.failed += 1
        tally.complain(f"{told}: {answer.status_code} {answer.text}")
    else:
        _check(question, answer, truths, tally)


async def _sent(client: httpx.AsyncClient, question: Question) -> httpx.Response:
    return await client.post(question.path, content=question.content, headers=question.headers)


def _check(question: Question, answer: httpx.Response, truths: Mapping[str, Truth], tally: Tally) -> None:
    ref, tensor = _read(question, answer)
    truth = truths.get(ref if question.engine == SWAPPED else question.engine)
    if truth is None or not truth.is_right(question.picked, tensor):
        tally.wrong += 1
        tally.complain(f"{question.protocol} {question.path}: {ref} answered {tensor.ravel()[:5]} …")
        return
    tally.right[question.protocol] += 1
    if question.engine == SWAPPED:
        tally.versions[ref] += 1


def _read(question: Question, answer: httpx.Response) -> tuple[str, Array]:
    """Which engine answered, as `name:version`, and its output."""
    if question.protocol == "v2":
        return read_v2(int(answer.headers["inference-header-content-length"]), answer.content)
    if question.protocol == "raw":
        shape = [int(length) for length in answer.headers["x-tensor-shape"].split("x")]
        return answer.headers["x-engine"], np.frombuffer(answer.content, np.float32).reshape(shape)
    body = answer.json()
    (output,) = body["outputs"].values()
    return body["engine"], np.array(output["data"], np.float32)


def _question(truths: Mapping[str, Truth], chance: random.Random) -> Question:
    engine = chance.choice(sorted({name.partition(":")[0] for name in truths}))
    truth = truths.get(engine) or next(truth for ref, truth in truths.items() if ref.startswith(f"{engine}:"))
    picked = [chance.randrange(INPUTS) for _ in range(chance.choice([1, 1, 1, 2, 4]))]
    ways = [v2, _raw, _json, _image] if truth.images else [v2, v2, _raw, _json]
    return chance.choice(ways)(engine, truth, picked)


def _raw(engine: str, truth: Truth, picked: list[int]) -> Question:
    headers = {"Content-Type": RAW, "Accept": RAW}
    return Question("raw", engine, picked, f"/infer/{engine}", headers, truth.rows[picked].tobytes())


def _json(engine: str, truth: Truth, picked: list[int]) -> Question:
    body = json.dumps({"inputs": truth.rows[picked].tolist()}).encode()
    return Question("json", engine, picked, f"/infer/{engine}?outputs=true", {"Content-Type": "application/json"}, body)


def _image(engine: str, truth: Truth, picked: list[int]) -> Question:
    headers = {"Content-Type": "image/png"}
    return Question(
        "image", engine, picked[:1], f"/infer/{engine}?outputs=true&top={CLASSES}", headers, truth.images[picked[0]]
    )
