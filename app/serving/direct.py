"""DirectRun: one run of a warm engine, answered by a call: a task and its wake-ups take longer than a small engine."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.domain.builds import EngineRecord
from app.domain.errors import ServiceError
from app.domain.tensors import Tensors
from app.serving.answers import Answer
from app.serving.batcher import Request, Run
from app.serving.pool import EnginePool
from app.serving.statistics import Statistics

Told = Callable[["Answer | None", "ServiceError | None"], None]  # the answer, or why there is none; raises nothing


class DirectRun:
    """Holds its lease until the answer is there; the batcher takes it for a future. Used on the event loop only."""

    __slots__ = ("_is_over", "_pool", "_record", "_request", "_rows", "_seat", "_started_s", "_statistics", "_told")

    def __init__(
        self,
        pool: EnginePool,
        statistics: Statistics,
        record: EngineRecord,
        started_s: float,
        told: Told,
    ) -> None:
        """
        Args:
            record: of an engine that is warm in the pool.
        """
        self._pool = pool
        self._statistics = statistics
        self._seat = pool.taken(record)
        self._record = record
        self._started_s = started_s
        self._told = told
        self._rows = 0
        self._request: Request | None = None
        self._is_over = False

    def enqueue(self, tensors: Tensors) -> None:
        """Wait for a turn. Raises as `MicroBatcher.enqueue` does."""
        warm = self._seat.warm
        assert warm is not None
        try:
            self._request = warm.enqueue(tensors, self)
            self._rows = self._request.rows
        except BaseException:
            self._end()
            self._count_failure()
            raise

    def withdraw(self) -> None:
        """Nobody waits any more."""
        if self._is_over:
            return
        if self._request is not None and self._seat.warm is not None:
            self._seat.warm.forget(self._request)
        self._end()

    def done(self) -> bool:
        return self._is_over

    def set_result(self, run: Run) -> None:
        total_s = time.perf_counter() - self._started_s
        self._end()
        self._statistics.add_answer(self._record.ref, (run,), self._rows, total_s, 0.0)
        timings_ms = {"load": 0.0, "queue": run.queue_ms, "compute": run.compute_ms, "total": total_s * 1e3}
        self._told(Answer(self._record, run.outputs, timings_ms, run.batch_rows), None)

    def set_exception(self, error: ServiceError) -> None:
        self._end()
        self._count_failure()
        self._told(None, error)

    def _count_failure(self) -> None:
        self._statistics.add_failure(self._record.ref, time.perf_counter() - self._started_s)

    def _end(self) -> None:
        self._is_over = True
        self._request = None
        self._pool.give_back(self._seat)
