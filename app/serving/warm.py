"""WarmEngine: one loaded engine with its contexts, their threads and its batcher."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from app.backends.base import Context, LoadedEngine
from app.domain.errors import ServiceError
from app.domain.tensors import Signature, Tensors, warm_up_inputs
from app.serving.batcher import MicroBatcher, rows_limit
from app.serving.contexts import ContextThread
from app.serving.requests import Answered, Request, Run
from app.serving.tuning import GAIN, ON_LOOP_S, WIDE_BUDGET_S, Tuning, measured, reaches

log = logging.getLogger(__name__)


class WarmEngine:
    """An engine that is ready: every context is open and has run once."""

    def __init__(
        self,
        engine: LoadedEngine,
        signature: Signature,
        contexts: list[ContextThread],
        *,
        batcher: MicroBatcher,
        device_bytes: int,
        keeper: Executor,
    ) -> None:
        self.signature = signature
        self.device_bytes = device_bytes
        self._engine = engine
        self._contexts = contexts
        self._batcher = batcher
        self._keeper = keeper

    @classmethod
    async def opened(
        cls, engine: LoadedEngine, signature: Signature, *, contexts: int, queue_rows_max: int, keeper: Executor
    ) -> WarmEngine:
        """Open the contexts, warm them up and measure what suits the engine. If that fails, all is closed again.

        Args:
            signature: the record's: it knows the ranges and how many rows may be joined.
            contexts: how many; 0: as many as make the most of the device.
            keeper: where blocking calls on the engine itself run.
        """
        opened: list[ContextThread] = []
        try:
            count = contexts or engine.parallel_runs
            for _ in range(count):
                opened.append(await _warm(partial(engine.open_context, count), signature))
            tuning = await _tuned(opened[0], signature) if engine.is_on_cpu else None
            wide = await _wide(engine, signature, tuning, opened) if tuning and count > 1 else None
            device_bytes = await asyncio.get_running_loop().run_in_executor(keeper, lambda: engine.device_bytes)
        except BaseException:
            await _closed(engine, opened, keeper)
            raise
        if tuning:
            _tell(tuning, wide)
        rows_max = rows_limit(signature)
        batcher = MicroBatcher(
            [context for context in opened if context is not wide],
            rows_max=rows_max if tuning is None or tuning.joining_pays else 1,
            crowd_rows=tuning.crowd_rows(count, rows_max) if tuning else 1,
            queue_rows_max=queue_rows_max,
            wide=wide,
            pace=tuning.pace if tuning else None,
        )
        return cls(engine, signature, opened, batcher=batcher, device_bytes=device_bytes, keeper=keeper)

    async def run(self, tensors: Tensors) -> Run:
        """Answer one request; see `MicroBatcher.submit`."""
        return await self._batcher.submit(tensors, rows_in(tensors, self.signature))

    def enqueue(self, tensors: Tensors | Callable[[], Tensors], answer: Answered) -> Request:
        """Answer one request by calls; see `MicroBatcher.enqueue`.

        Args:
            tensors: or what makes those of one row, where the engine `prepares`.
        """
        rows = 1 if callable(tensors) else rows_in(tensors, self.signature)
        return self._batcher.enqueue(tensors, rows, answer)

    def forget(self, request: Request) -> None:
        """The client of a request that was enqueued has gone."""
        self._batcher.forget(request)

    async def close(self) -> None:
        """Wait for what runs, refuse what waits, close the contexts, then the engine."""
        await self._batcher.close()
        await _closed(self._engine, self._contexts, self._keeper)

    def count(self, requests: int, rows: int, runs: int) -> None:
        """Count what a copy of this engine has answered."""
        self._batcher.requests += requests
        self._batcher.rows += rows
        self._batcher.runs += runs

    @property
    def prepares(self) -> bool:
        """See `MicroBatcher.prepares`."""
        return self._batcher.prepares

    @property
    def is_short(self) -> bool:
        """Whether a run of one row takes less than the way to a thread and back."""
        return self._batcher.is_short

    @property
    def runs(self) -> int:
        """Runs of the engine; a run answers one request or several."""
        return self._batcher.runs

    @property
    def requests(self) -> int:
        return self._batcher.requests

    @property
    def rows(self) -> int:
        return self._batcher.rows

    @property
    def waiting_rows(self) -> int:
        return self._batcher.waiting_rows

    @property
    def contexts(self) -> int:
        return len(self._contexts)


def rows_in(tensors: Tensors, signature: Signature) -> int:
    """Rows of a request: the length of axis 0 where it is a batch axis, else 1."""
    return tensors[signature.inputs[0].name].shape[0] if signature.rows_max > 1 else 1


async def _warm(open_context: Callable[[], Context], signature: Signature) -> ContextThread:
    context = await ContextThread.opened(open_context)
    try:
        await context.call(partial(_warm_up, signature))
    except BaseException:
        await context.close()
        raise
    return context


def _warm_up(signature: Signature, context: Context) -> None:
    try:
        context.run(warm_up_inputs(signature))
    except ServiceError as error:
        # The values, and the lengths of dynamic axes, are made up: that the engine refuses them says nothing about
        # real requests. Want of memory is no ServiceError and does end the load.
        log.warning("the warm-up run failed, the first request may be slow: %s", error.detail)


async def _tuned(thread: ContextThread, signature: Signature) -> Tuning | None:
    """What a short measured run tells; None when the engine refuses made-up values."""
    try:
        return await thread.call(
            lambda context: measured(context, partial(warm_up_inputs, signature), rows_limit(signature))
        )
    except ServiceError:
        return None


def _tell(tuning: Tuning, wide: ContextThread | None) -> None:
    fields = {
        "row_ms": round(tuning.pace.seconds(1) * 1e3, 3),
        "joins": tuning.joining_pays,
        "lone_runs_wide": wide is not None,
    }
    log.info("engine tuned", extra=fields)


async def _wide(
    engine: LoadedEngine, signature: Signature, tuning: Tuning, opened: list[ContextThread]
) -> ContextThread | None:
    """A context with all processors for the lone request, if that is measurably faster than one of the others."""
    one_row_s = tuning.pace.seconds(1)
    if one_row_s <= ON_LOOP_S:
        return None
    thread = await _warm(partial(engine.open_context, 1), signature)
    opened.append(thread)
    inputs = warm_up_inputs(signature, 1)
    if await thread.call(lambda context: reaches(context, inputs, GAIN * one_row_s, WIDE_BUDGET_S)):
        return thread
    opened.remove(thread)
    await thread.close()
    return None


async def _closed(engine: LoadedEngine, contexts: list[ContextThread], keeper: Executor) -> None:
    for context in contexts:
        await context.close()
    try:
        await asyncio.get_running_loop().run_in_executor(keeper, engine.close)
    except Exception:
        log.exception("an engine did not close")
