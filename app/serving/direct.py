"""DirectRun: one run of a warm engine, answered by a call: a task and its wake-ups take longer than a small engine."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.domain.builds import EngineRecord
from app.domain.errors import ImageRejected, ServiceError
from app.domain.tensors import Tensors
from app.serving.answers import Answer
from app.serving.pool import EnginePool
from app.serving.requests import Request, Run
from app.serving.statistics import Statistics

Told = Callable[["Answer | None", "ServiceError | None"], None]  # the answer, or why there is none; raises nothing


class DirectRun:
    """Holds its lease until the answer is there; the batcher takes it for a future. Used on the event loop only."""

    __slots__ = (
        "_is_image",
        "_is_over",
        "_pool",
        "_record",
        "_request",
        "_rows",
        "_seat",
        "_started_s",
        "_statistics",
        "_told",
    )

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
        self._is_image = False
        self._request: Request | None = None
        self._is_over = False

    def enqueue(self, tensors: Tensors | Callable[[], Tensors]) -> None:
        """Wait for a turn; see `WarmEngine.enqueue`. Raises as `MicroBatcher.enqueue` does."""
        self._is_image = callable(tensors)
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
        self._is_over = True
        prepared_ms = {"preprocess": run.prepare_ms} if self._is_image else {}
        ran_ms = {"load": 0.0, "queue": run.queue_ms, "compute": run.compute_ms, "total": total_s * 1e3}
        self._told(Answer(self._record, run.outputs, {**prepared_ms, **ran_ms}, run.batch_rows), None)
        # The client has its answer first: after a run the processor has little of this left in its caches.
        self._statistics.add_answer(
            self._record.ref, (run,), self._rows, total_s, prepared_ms.get("preprocess", 0.0) / 1e3
        )
        self._end()

    def set_exception(self, error: ServiceError) -> None:
        self._end()
        if not isinstance(error, ImageRejected):  # it did not pass every check
            self._count_failure()
        self._told(None, error)

    def _count_failure(self) -> None:
        self._statistics.add_failure(self._record.ref, time.perf_counter() - self._started_s)

    def _end(self) -> None:
        self._is_over = True
        self._request = None
        self._pool.give_back(self._seat)
