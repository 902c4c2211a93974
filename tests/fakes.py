"""A runtime that can wait and fail on demand, and records of engines that were never built."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import TypeVar

import numpy as np

from app.backends.base import Context
from app.domain.builds import Accuracy, BuildOptions, BuiltEngine, Digest, EngineRecord, Facts, Latency
from app.domain.errors import ExecutionFailed
from app.domain.preprocess import Preprocess
from app.domain.tensors import ANY, DType, Signature, Tensors, TensorSpec

T = TypeVar("T")

LONG_S = 20  # a bound that is only reached when something is broken


class Gate:
    """Holds every run of an engine until it is opened, and tells how many rows each had."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.runs: list[int] = []  # rows of each run that has entered
        self._opened = threading.Event()
        if is_open:
            self._opened.set()

    def open(self) -> None:
        self._opened.set()

    def shut(self) -> None:
        self._opened.clear()

    def enter(self, rows: int) -> None:
        self.runs.append(rows)
        assert self._opened.wait(LONG_S), "nobody opened the gate"

    async def entered(self, runs: int) -> None:
        await eventually(lambda: len(self.runs) >= runs)


async def soon(awaited: Awaitable[T]) -> T:
    """The result, or a failure where it would never come."""
    return await asyncio.wait_for(awaited, LONG_S)


async def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until it is so."""

    async def poll() -> None:
        while not is_so():
            await asyncio.sleep(0.001)

    await soon(poll())


def doubled(inputs: Tensors) -> Tensors:
    return {"y": inputs["x"] * 2}


class FakeEngine:
    """A LoadedEngine: y = 2·x by rows. It fails on an x that holds a negative number, and keeps its contexts honest."""

    def __init__(
        self,
        *,
        gate: Gate | None = None,
        answer: Callable[[Tensors], Tensors] = doubled,
        device_bytes: int = 100,
        contexts_max: int = 64,
    ) -> None:
        self.signature = signature_of_x_to_y()
        self.device_bytes = device_bytes
        self.gate = gate
        self.answer = answer
        self.contexts_max = contexts_max
        self.opened: list[FakeContext] = []
        self.is_closed = False

    is_on_cpu = False
    parallel_runs = 2

    def open_context(self, at_once: int | None = None) -> FakeContext:
        if len(self.opened) == self.contexts_max:
            raise RuntimeError("no more contexts")
        self.opened.append(FakeContext(self))
        return self.opened[-1]

    def close(self) -> None:
        assert all(context.is_closed for context in self.opened), "the engine was closed before its contexts"
        assert not self.is_closed, "the engine was closed twice"
        self.is_closed = True


class FakeContext(Context):
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.thread = threading.get_ident()
        self.touched_by = {self.thread}
        self.runs = 0
        self.is_closed = False

    def run(self, inputs: Tensors) -> Tensors:
        self.touched_by.add(threading.get_ident())
        self.runs += 1
        assert not self.is_closed, "a closed context was used"
        if self.engine.gate is not None:
            self.engine.gate.enter(len(inputs["x"]))
        if (inputs["x"] < 0).any():
            raise ExecutionFailed("A number is negative.", hint="Send positive ones.")
        return self.engine.answer(inputs)

    def close(self) -> None:
        self.touched_by.add(threading.get_ident())
        self.is_closed = True


def signature_of_x_to_y(rows_max: int = 4) -> Signature:
    """Of an engine with one float input x and one float output y, both of any shape (rows, columns)."""
    return Signature(
        (TensorSpec("x", DType.FLOAT32, (ANY, ANY)),), (TensorSpec("y", DType.FLOAT32, (ANY, ANY)),), {}, rows_max
    )


def engine_record(
    name: str = "net",
    version: int = 1,
    *,
    blob: str | None = None,
    size_bytes: int = 100,
    signature: Signature | None = None,
    preprocess: Preprocess | None = None,
    labels: tuple[str, ...] = (),
) -> EngineRecord:
    """A published engine; its file is `blob`, by default one of its own."""
    facts = Facts("fake", "1", "none", "x86_64")
    built = BuiltEngine(
        size_bytes=size_bytes,
        facts=facts,
        signature=signature or signature_of_x_to_y(),
        preprocess=preprocess,
        labels=labels,
        accuracy=Accuracy((), 1, "random", "none"),
        latency=Latency(1, 1, 1, 1, 1),
        built_in_s=1,
    )
    return EngineRecord(
        name=name,
        version=version,
        key=f"{name}-{version}",
        blob=Digest(f"sha256:{blob or f'{name}-{version}'}"),
        model=Digest("sha256:model"),
        calibration=None,
        options=BuildOptions(),
        built=built,
        created_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
    )


def threads_of_serving() -> list[str]:
    """Names of the serving layer's threads that live."""
    prefixes = ("engine-", "infer-")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefixes)]


def row(*values: float) -> Tensors:
    """One row of x."""
    return {"x": np.array([values], np.float32)}
