"""InferenceService: find the engine, check the tensors, lease, submit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from app.domain.builds import EngineRecord
from app.domain.errors import InUse, RequestTimedOut
from app.domain.tensors import Shape, Tensor, Tensors, check_inputs, named_inputs
from app.room import Room
from app.serving.answers import Answer, Ranked, check_by_row, concatenated, top_k
from app.serving.direct import DirectRun, Told
from app.serving.images import image_batches, image_input
from app.serving.lookups import Lookups
from app.serving.pool import EnginePool
from app.serving.pool_events import PoolEvents
from app.serving.refusals import stopping
from app.serving.requests import Run
from app.serving.seats import WarmState
from app.serving.statistics import Statistics
from app.serving.warm import rows_in

T = TypeVar("T")

__all__ = ["Answer", "InferenceService", "Ranked", "top_k"]


class InferenceService:
    """What every protocol calls to infer; it knows no protocol."""

    def __init__(
        self,
        find: Callable[[str, int | None], EngineRecord],
        pool: EnginePool,
        *,
        clock: Callable[[], float] = time.monotonic,
        found_for_s: float = 0.25,
        changes: Callable[[], int | None] = lambda: None,
    ) -> None:
        """
        Args:
            find: the record of a name and version (None = the newest); may block, runs on a thread.
            found_for_s: how long a found record is taken for true: the delay until a new version is seen, and what
                keeps the database out of the path of a busy engine.
            changes: grows with every change of what `find` reads, so that nothing is looked up anew for nothing; told
                at once, on the event loop; None where it cannot be told.
        """
        self.statistics = Statistics()
        self._pool = pool
        self._passed: dict[str, tuple[str, list[tuple[str, Any, Shape]]]] = {}  # by engine: the last form checked
        self._withdrawn: set[str] = set()  # name:version, unloaded by name and not used since
        self._workers = ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)), thread_name_prefix="infer-worker")
        self._lookups = Lookups(find, self._workers, clock=clock, found_for_s=found_for_s, changes=changes)
        self.told_to_forget: list[Callable[[str], None]] = []  # an engine's name, as `forget` is
        self._is_closed = False

    async def find(self, ref: str) -> EngineRecord:
        """The engine of that name, as it was at most `found_for_s` ago.

        Args:
            ref: `name` (the newest version) or `name:version`.

        Raises:
            InvalidName, EngineNotFound, or ShuttingDown.
        """
        if self._is_closed:
            raise stopping()
        return await self._lookups.find(ref)

    def has_found(self, ref: str) -> bool:
        """Whether the engine has been asked for since it was last published or changed."""
        return self._lookups.has(ref)

    def known(self, ref: str) -> EngineRecord | None:
        """The engine if it can be told without waiting; None: `find` may have to look."""
        return None if self._is_closed else self._lookups.known(ref)

    def is_warm(self, record: EngineRecord) -> bool:
        """Whether there is nothing to wait for but a turn of the engine."""
        return self._pool.is_warm(record)

    def prepares_images(self, record: EngineRecord) -> bool:
        """Whether `begin` takes images for this engine, which is warm: its runs' processors may as well decode them."""
        return self._pool.warm(record).prepares

    def begin(self, record: EngineRecord, inputs: Mapping[str, Tensor] | memoryview, told: Told) -> DirectRun:
        """As `infer` with an engine that is warm, for one who is called when the answer is there.

        Args:
            inputs: or one encoded image, of an engine that `prepares_images`.
            told: called once, unless the run is withdrawn before; not before this returns.

        Raises:
            TensorRejected, RecipeMissing, or what `MicroBatcher.enqueue` raises.
        """
        started_s = time.perf_counter()
        ready = image_input(inputs, record) if isinstance(inputs, memoryview) else self._checked(inputs, record)
        self._withdrawn.discard(record.ref)
        run = DirectRun(self._pool, self.statistics, record, started_s, told)
        run.enqueue(ready)
        return run

    async def infer(self, ref: str, inputs: Mapping[str, Tensor], *, timeout_s: float | None = None) -> Answer:
        """Run an engine on tensors.

        Args:
            ref: as for `find`.
            inputs: by name; the name "" stands for the only input.
            timeout_s: for the answer, an engine's load included; None: as long as it takes.

        Raises:
            RequestTimedOut: there was no answer in time.
            EngineNotFound, TensorRejected, or what `EnginePool.lease` and `MicroBatcher.submit` raise.
        """
        started_s = time.perf_counter()
        record = await self.find(ref)
        return await self._answered(record, [self._checked(inputs, record)], started_s, {}, timeout_s)

    async def infer_images(
        self, ref: str, images: Sequence[bytes | memoryview], *, timeout_s: float | None = None
    ) -> Answer:
        """Run an engine on encoded images, one row each, through the engine's own recipe.

        The images become as few runs as the engine allows.

        Args:
            timeout_s: for the answer once the images are decoded; None: as long as it takes.

        Raises:
            RequestTimedOut: there was no answer in time.
            InvalidRequest: there are no images.
            RecipeMissing: the engine takes tensors only.
            ImageRejected: names the image that cannot be decoded.
        """
        started_s = time.perf_counter()
        record = await self.find(ref)
        batches = await image_batches(images, record, self._workers)
        chunks = [self._checked(batch, record) for batch in batches]
        return await self._answered(record, chunks, started_s, {"preprocess": _ms_since(started_s)}, timeout_s)

    async def load(self, ref: str, *, pin: bool | None = None, keep_alive_s: float | None = None) -> WarmState:
        """Have the engine warm before its first request; see `EnginePool.load`."""
        self.forget(ref)
        record = await self.find(ref)
        self._withdrawn.discard(record.ref)
        return await self._pool.load(record, pin=pin, keep_alive_s=keep_alive_s)

    def unpin(self, ref: str) -> None:
        """Let the engine of that `name:version` leave as others do."""
        self._pool.unpin(ref)

    def estimate_bytes(self, record: EngineRecord) -> int:
        """Memory that the engine will take once it is warm."""
        return self._pool.estimate_bytes(record)

    async def unload(self, ref: str) -> bool:
        """Give the engine's memory back once its requests are answered; False if it was not warm."""
        self.forget(ref)
        record = await self.find(ref)
        self._withdrawn.add(record.ref)
        return await self._pool.unload(record)

    @property
    def pool(self) -> EnginePool:
        """For those who answer with copies of its engines."""
        return self._pool

    def is_withdrawn(self, record: EngineRecord) -> bool:
        """Whether the engine was unloaded by name and nobody has used or loaded it since."""
        return record.ref in self._withdrawn

    async def drop(self, record: EngineRecord) -> None:
        """Unload an engine that has been deleted; one that still serves leaves when its requests end."""
        self.forget(record.ref)
        self._withdrawn.discard(record.ref)
        with contextlib.suppress(InUse):
            await self._pool.unload(record, is_gone=True)
        self.statistics.forget(record.ref)

    def forget(self, ref: str) -> None:
        """Look the engine up anew at its next request: it was published, deleted or changed."""
        name = ref.partition(":")[0]
        self._lookups.forget(name)
        for tell in self.told_to_forget:
            tell(name)
        for ref in [ref for ref in self._passed if ref.partition(":")[0] == name]:
            del self._passed[ref]

    def states(self) -> list[WarmState]:
        """Every engine that is loading, ready or draining."""
        return self._pool.states()

    async def free_up(self, needed_bytes: int, backend: str) -> Room:
        """Evict idle engines until that backend could take so much; see `Seating.free_up`."""
        return await self._pool.seating.free_up(needed_bytes, backend)

    @property
    def events(self) -> PoolEvents:
        """What the pool has done, and who is told when it does more."""
        return self._pool.events

    @property
    def used_bytes(self) -> int:
        """Memory of all warm engines."""
        return self._pool.seating.used_bytes

    @property
    def keep_alive_s(self) -> float:
        """Of engines that have no time of their own."""
        return self._pool.keep_alive_s

    @property
    def budget_bytes(self) -> int:
        """Memory that all warm engines may have together."""
        return self._pool.seating.budget_bytes

    async def close(self) -> None:
        """Let what runs end, refuse the rest, give all memory and threads back."""
        self._is_closed = True
        await self._pool.close()
        self._workers.shutdown(wait=True)

    def _checked(self, inputs: Mapping[str, Tensor], record: EngineRecord) -> Tensors:
        """The inputs as an engine wants them: every name, right dtypes and shapes, C-contiguous."""
        form = [(name, tensor.dtype, tensor.shape) for name, tensor in inputs.items()]
        if self._passed.get(record.ref) != (record.key, form):  # clients repeat themselves
            inputs = named_inputs(inputs, record.built.signature)
            check_inputs(inputs, record.built.signature)
            form = [(name, tensor.dtype, tensor.shape) for name, tensor in inputs.items()]
            self._passed[record.ref] = (record.key, form)
        return {name: np.asarray(tensor, order="C") for name, tensor in inputs.items()}

    async def _answered(
        self,
        record: EngineRecord,
        chunks: list[Tensors],
        started_s: float,
        timings_ms: dict[str, float],
        timeout_s: float | None,
    ) -> Answer:
        """Run the chunks and count the request in the statistics, whichever way it ends."""
        try:
            running = self._ran(record, chunks, timings_ms)
            runs = await (running if timeout_s is None else _within(running, timeout_s))
        except Exception:
            self.statistics.add_failure(record.ref, time.perf_counter() - started_s)
            raise
        outputs = concatenated([run.outputs for run in runs])
        timings_ms["queue"] = sum(run.queue_ms for run in runs)
        timings_ms["compute"] = sum(run.compute_ms for run in runs)
        timings_ms["total"] = _ms_since(started_s)
        rows = sum(rows_in(chunk, record.built.signature) for chunk in chunks)
        input_s = timings_ms.get("preprocess", 0) / 1e3
        self.statistics.add_answer(record.ref, runs, rows, timings_ms["total"] / 1e3, input_s)
        return Answer(record, outputs, timings_ms, max(run.batch_rows for run in runs))

    async def _ran(self, record: EngineRecord, chunks: list[Tensors], timings_ms: dict[str, float]) -> list[Run]:
        """Run the chunks one after another, so that one request of many rows leaves room for others."""
        self._withdrawn.discard(record.ref)
        asked_s = time.perf_counter()
        async with self._pool.lease(record) as engine:
            timings_ms["load"] = _ms_since(asked_s)
            if len(chunks) == 1:
                return [await engine.run(chunks[0])]
            runs: list[Run] = []
            for chunk in chunks:
                runs.append(await engine.run(chunk))
                check_by_row(runs[-1].outputs, len(next(iter(chunk.values()))))
        return runs


async def _within(running: Coroutine[Any, Any, T], timeout_s: float) -> T:
    try:
        # Past its time the request is cancelled, which its neighbours in a run do not notice.
        return await asyncio.wait_for(running, timeout_s)
    except asyncio.TimeoutError as error:
        raise RequestTimedOut(
            f"There was no answer within the request's own limit of {timeout_s * 1e3:g} ms.",
            hint="Send it again in a moment, or allow it more time.",
        ) from error


def _ms_since(started_s: float) -> float:
    return (time.perf_counter() - started_s) * 1e3
