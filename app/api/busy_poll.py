"""BusyPoll: for a moment after an answer the event loop looks for the next request instead of sleeping.

To wake a process that sleeps takes longer than to answer for a small engine. A client that asks again at once is
therefore waited for awake, as long as it is the only one: with several, one of them has usually asked already.
"""

from __future__ import annotations

import os
import time
from asyncio import AbstractEventLoop


class BusyPoll:
    """Keeps one event loop awake, for the connection that deserves it."""

    def __init__(self, limit_s: float) -> None:
        """
        Args:
            limit_s: of one wait; a client that takes longer is not waited for again until it was quicker. 0: never.
        """
        self._limit_s = limit_s
        self._asked_last: object = None
        self._end_s = 0.0
        self._is_awake = False

    def deserves(self, connection: object, waited_s: float) -> bool:
        """Whether the next request of this connection is to be waited for, now that one has come.

        Args:
            waited_s: since its last answer.
        """
        is_alone, self._asked_last = self._asked_last is connection, connection
        return is_alone and waited_s < self._limit_s

    def begin(self, loop: AbstractEventLoop, now_s: float) -> None:
        """Stay awake from now on: for the limit, or until `end`."""
        self._end_s = now_s + self._limit_s
        if not self._is_awake:
            self._is_awake = True
            loop.call_soon(self._turn, loop)

    def end(self) -> None:
        """What was waited for has come."""
        self._end_s = 0.0

    def _turn(self, loop: AbstractEventLoop) -> None:
        self._is_awake = time.monotonic() < self._end_s
        if self._is_awake:
            os.sched_yield()  # whoever else wants the processor, the client perhaps, has it first
            loop.call_soon(self._turn, loop)
