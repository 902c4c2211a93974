"""ContextThread: a context and the one thread that it lives on."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

from app.backends.base import Context

log = logging.getLogger(__name__)
T = TypeVar("T")

Work = Callable[[Context], T]
Done = Callable[["T | None", "BaseException | None"], None]  # the result, or what was raised

_numbers = itertools.count()


class ContextThread:
    """A context that is opened, used and closed on a thread of its own.

    A CUDA context belongs to the thread that pushed it, so no other thread ever touches it. Calls run one after
    another, in the order in which they were made.
    """

    def __init__(self) -> None:
        # A queue and `call_soon_threadsafe` take half the time of an executor's futures there and back.
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._context: Context | None = None
        name = f"engine-context-{next(_numbers)}"
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @classmethod
    async def opened(cls, open_context: Callable[[], Context]) -> ContextThread:
        """Open a context on a new thread; the thread is gone again if that fails."""
        thread = cls()
        try:
            thread._context = await thread._made(open_context)
        except BaseException:
            thread._end()
            raise
        return thread

    @property
    def context(self) -> Context:
        """For an engine that is not bound to threads: run it where you are, while no call is under way."""
        assert self._context is not None
        return self._context

    def start(self, work: Work[T], done: Done[T]) -> None:
        """Run the work on the context's thread, then `done` on the event loop."""
        context = self.context
        self._calls.put(lambda: self._answer(lambda: work(context), done))

    def call(self, work: Work[T]) -> asyncio.Future[T]:
        """Run the work on the context's thread; what it raises is in the future."""
        context = self.context
        return self._made(lambda: work(context))

    async def close(self) -> None:
        """Close the context after the calls made so far, and end its thread."""
        try:
            await self.call(lambda context: context.close())
        except Exception:
            log.exception("a context did not close")
        finally:
            self._end()

    def _made(self, make: Callable[[], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()

        def done(result: T | None, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]  # None is a result where T allows it
            else:
                future.set_exception(error)

        self._calls.put(lambda: self._answer(make, done))
        return future

    def _answer(self, make: Callable[[], T], done: Done[T]) -> None:
        try:
            result = make()
        except BaseException as error:
            self._tell(done, None, error)
        else:
            self._tell(done, result, None)

    def _tell(self, done: Done[T], result: T | None, error: BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(done, result, error)
        except RuntimeError:  # the event loop has been closed: nobody waits any more
            log.debug("a context answered after the end of the event loop")

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # it holds the tensors of the run

    def _end(self) -> None:
        self._calls.put(None)
        self._thread.join()
