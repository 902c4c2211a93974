"""WarmEngine: one loaded engine with its contexts, their threads and its batcher."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from functools import partial

from app.backends.base import Context, LoadedEngine
from app.domain.errors import ServiceError
from app.domain.tensors import Signature, Tensors, warm_up_inputs
from app.serving.batcher import MicroBatcher, Run, rows_limit
from app.serving.contexts import ContextThread

log = logging.getLogger(__name__)


class WarmEngine:
    """An engine that is ready: every context is open and has run once."""

    def __init__(
        self,
        engine: LoadedEngine,
        signature: Signature,
        contexts: list[ContextThread],
        *,
        queue_rows_max: int,
        device_bytes: int,
        keeper: Executor,
    ) -> None:
        self.signature = signature
        self.device_bytes = device_bytes
        self._engine = engine
        self._contexts = contexts
        self._keeper = keeper
        self._batcher = MicroBatcher(contexts, rows_max=rows_limit(signature), queue_rows_max=queue_rows_max)

    @classmethod
    async def opened(
        cls, engine: LoadedEngine, signature: Signature, *, contexts: int, queue_rows_max: int, keeper: Executor
    ) -> WarmEngine:
        """Open the contexts and warm them up. If that fails, the engine and all that was opened is closed.

        Args:
            signature: the record's: it knows the ranges and how many rows may be joined.
            keeper: where blocking calls on the engine itself run.
        """
        opened: list[ContextThread] = []
        try:
            for _ in range(contexts):
                opened.append(await ContextThread.opened(engine))
                await opened[-1].call(partial(_warm_up, signature))
            device_bytes = await asyncio.get_running_loop().run_in_executor(keeper, lambda: engine.device_bytes)
        except BaseException:
            await _closed(engine, opened, keeper)
            raise
        return cls(engine, signature, opened, queue_rows_max=queue_rows_max, device_bytes=device_bytes, keeper=keeper)

    async def run(self, tensors: Tensors) -> Run:
        """Answer one request; see `MicroBatcher.submit`."""
        return await self._batcher.submit(tensors, rows_in(tensors, self.signature))

    async def close(self) -> None:
        """Wait for what runs, refuse what waits, close the contexts, then the engine."""
        await self._batcher.close()
        await _closed(self._engine, self._contexts, self._keeper)

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


def _warm_up(signature: Signature, context: Context) -> None:
    try:
        context.run(warm_up_inputs(signature))
    except ServiceError as error:
        # The values, and the lengths of dynamic axes, are made up: that the engine refuses them says nothing about
        # real requests. Want of memory is no ServiceError and does end the load.
        log.warning("the warm-up run failed, the first request may be slow: %s", error.detail)


async def _closed(engine: LoadedEngine, contexts: list[ContextThread], keeper: Executor) -> None:
    for context in contexts:
        await context.close()
    try:
        await asyncio.get_running_loop().run_in_executor(keeper, engine.close)
    except Exception:
        log.exception("an engine did not close")
