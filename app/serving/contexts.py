"""ContextThread: a context and the one thread that it lives on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from app.backends.base import Context, LoadedEngine

log = logging.getLogger(__name__)
T = TypeVar("T")


class ContextThread:
    """A context that is opened, used and closed on a thread of its own.

    A CUDA context belongs to the thread that pushed it, so no other thread ever touches it. Calls run one after
    another, in the order in which they were made.
    """

    def __init__(self, context: Context, thread: ThreadPoolExecutor) -> None:
        self._context = context
        self._thread = thread

    @classmethod
    async def opened(cls, engine: LoadedEngine) -> ContextThread:
        """Open a context of the engine on a new thread; the thread is gone again if that fails."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-context")
        try:
            context = await asyncio.get_running_loop().run_in_executor(thread, engine.open_context)
        except BaseException:
            thread.shutdown(wait=True)
            raise
        return cls(context, thread)

    def call(self, work: Callable[[Context], T]) -> asyncio.Future[T]:
        """Run the work on the context's thread; what it raises is in the future."""
        return asyncio.get_running_loop().run_in_executor(self._thread, work, self._context)

    async def close(self) -> None:
        """Close the context after the calls made so far, and end its thread."""
        try:
            await self.call(lambda context: context.close())
        except Exception:
            log.exception("a context did not close")
        finally:
            self._thread.shutdown(wait=True)
