"""MicroBatcher: joins the requests that have gathered into one run, and splits its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from app.backends.base import Context
from app.domain.errors import ExecutionFailed, QueueFull, ServiceError, ShuttingDown
from app.domain.tensors import Signature, Tensors
from app.serving.contexts import ContextThread

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One request's part of a run."""

    outputs: Tensors  # this request's rows; they share no memory with another request's
    queue_ms: float  # from submit to the start of the run
    compute_ms: float  # of the whole run
    batch_rows: int  # rows of the whole run
    is_first: bool = True  # of the requests that the run answered: they are as many as runs


@dataclass(eq=False)
class _Request:
    tensors: Tensors
    rows: int
    shapes: Hashable  # requests of equal shapes may be joined
    answer: asyncio.Future[Run]
    submitted_s: float = field(default_factory=time.perf_counter)
    alone: bool = False  # a joint run with it has failed


class _NotByRow(Exception):
    """A joint run's output does not have one row for each row of input."""


class MicroBatcher:
    """A queue in front of an engine's contexts.

    A free context takes, at the next turn of the event loop, what has gathered: first come, first served, up to
    `rows_max` rows of one shape. No request waits for a timer. A request of more rows than that runs by itself.
    """

    def __init__(self, contexts: Sequence[ContextThread], *, rows_max: int, queue_rows_max: int) -> None:
        """
        Args:
            rows_max: most rows of a joint run (`rows_limit`); 1 = requests are never joined.
            queue_rows_max: most rows that may wait.
        """
        self.runs = 0
        self.requests = 0  # answered
        self.rows = 0  # answered
        self.waiting_rows = 0
        self._idle = list(contexts)
        self._rows_max = rows_max
        self._queue_rows_max = queue_rows_max
        self._queue: deque[_Request] = deque()
        self._running: set[asyncio.Future[_Ran]] = set()
        self._is_woken = False
        self._is_closed = False

    async def submit(self, tensors: Tensors, rows: int) -> Run:
        """Run the engine on these tensors, perhaps together with other requests'.

        Args:
            tensors: checked against the signature; C-contiguous; left unchanged until the answer.
            rows: their length along axis 0, or 1 where requests are never joined.

        Raises:
            QueueFull: too many rows wait already.
            ExecutionFailed: the engine failed on this request, not merely on a neighbour.
            ShuttingDown: the engine was closed before the request's turn.
        """
        self._refuse_if_closed_or_full(rows)
        request = _Request(tensors, rows, _shapes(tensors), asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self.waiting_rows += rows
        self._wake()
        try:
            return await request.answer
        except asyncio.CancelledError:
            self._forget(request)
            raise

    async def close(self) -> None:
        """Refuse what waits, and wait for what runs."""
        self._is_closed = True
        self._fail_queue()
        while self._running:
            await asyncio.wait(self._running)

    def _refuse_if_closed_or_full(self, rows: int) -> None:
        if self._is_closed:
            raise _closing()
        if self._queue and self.waiting_rows + rows > self._queue_rows_max:
            raise QueueFull(
                f"{self.waiting_rows} rows wait for this engine, and at most {self._queue_rows_max} may.",
                hint="Send the request again in a moment, or raise queue_rows_max.",
            )

    def _wake(self) -> None:
        # At the next turn, not now: requests that arrive within this turn are then in the same run.
        if not self._is_woken:
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._start_runs)

    def _start_runs(self) -> None:
        self._is_woken = False
        while self._queue and self._idle:
            context = self._idle.pop()
            batch = self._taken()
            run = context.call(partial(_executed, [request.tensors for request in batch], [r.rows for r in batch]))
            self._running.add(run)
            run.add_done_callback(partial(self._finish, context, batch))

    def _taken(self) -> list[_Request]:
        """The head of the queue, and what follows it as long as it can be joined; nobody is overtaken."""
        batch = [self._queue.popleft()]
        rows = batch[0].rows
        while self._queue and not (batch[0].alone or self._queue[0].alone):
            head = self._queue[0]
            if head.shapes != batch[0].shapes or rows + head.rows > self._rows_max:
                break
            batch.append(self._queue.popleft())
            rows += head.rows
        self.waiting_rows -= rows
        return batch

    def _finish(self, context: ContextThread, batch: list[_Request], run: asyncio.Future[_Ran]) -> None:
        self._running.discard(run)
        self._idle.append(context)
        self.runs += 1
        error = run.exception()
        if error is None:
            self._deliver(batch, run.result())
        elif len(batch) == 1:
            _fail(batch[0], _execution_failed(error))
        else:
            self._retry_alone(batch, error)
        if self._queue:
            self._wake()

    def _deliver(self, batch: list[_Request], ran: _Ran) -> None:
        batch_rows = sum(request.rows for request in batch)
        is_first = True
        for request, outputs in zip(batch, ran.parts, strict=True):
            if request.answer.done():  # its client has gone
                continue
            self.requests += 1
            self.rows += request.rows
            queue_ms = (ran.started_s - request.submitted_s) * 1e3
            request.answer.set_result(Run(outputs, queue_ms, (ran.ended_s - ran.started_s) * 1e3, batch_rows, is_first))
            is_first = False

    def _retry_alone(self, batch: list[_Request], error: BaseException) -> None:
        """Put a failed joint run's requests back at the head, each to run by itself: one may have spoilt it."""
        if isinstance(error, _NotByRow) and self._rows_max > 1:
            log.error("an engine does not answer row by row; its requests are joined no more: %s", error)
            self._rows_max = 1
        for request in reversed(batch):
            if not request.answer.done():
                request.alone = True
                self._queue.appendleft(request)
                self.waiting_rows += request.rows
        if self._is_closed:
            self._fail_queue()

    def _fail_queue(self) -> None:
        while self._queue:
            _fail(self._queue.popleft(), _closing())
        self.waiting_rows = 0

    def _forget(self, request: _Request) -> None:
        if request in self._queue:
            self._queue.remove(request)
            self.waiting_rows -= request.rows
        elif not request.answer.cancelled():
            request.answer.exception()  # it came in the turn of the cancellation; nobody else will look at it


def rows_limit(signature: Signature) -> int:
    """Most rows of one run: `rows_max`, or less where the ranges allow less."""
    longest = [allowed.max[0] for allowed in signature.ranges.values() if allowed.max]
    return max(1, min([signature.rows_max, *longest]))


def joined(parts: Sequence[Tensors]) -> Tensors:
    """The parts one after another along axis 0; a single part as it is, not copied."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split(outputs: Tensors, rows: Sequence[int]) -> list[Tensors]:
    """Undo `joined` on the outputs: each part its own copy; a single part as it is, not copied.

    Raises:
        _NotByRow: an output's axis 0 is not as long as the rows together.
    """
    if len(rows) == 1:
        return [outputs]
    for name, output in outputs.items():
        if output.ndim == 0 or output.shape[0] != sum(rows):
            raise _NotByRow(f"output {name!r} has shape {output.shape} for {sum(rows)} rows")
    ends = np.cumsum(rows)
    # Copied, so that a small answer does not keep the whole run's in memory.
    return [
        {name: output[end - length : end].copy() for name, output in outputs.items()}
        for end, length in zip(ends, rows, strict=True)
    ]


@dataclass(frozen=True)
class _Ran:
    parts: list[Tensors]
    started_s: float
    ended_s: float


def _executed(parts: Sequence[Tensors], rows: Sequence[int], context: Context) -> _Ran:
    """Join, run and split on the context's thread, so that the event loop copies nothing."""
    inputs = joined(parts)
    started_s = time.perf_counter()
    outputs = context.run(inputs)
    ended_s = time.perf_counter()
    return _Ran(split(outputs, rows), started_s, ended_s)


def _shapes(tensors: Tensors) -> Hashable:
    return tuple((name, tensors[name].dtype, tensors[name].shape[1:]) for name in sorted(tensors))


def _fail(request: _Request, error: ServiceError) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)


def _execution_failed(error: BaseException) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    log.error("an engine raised what its backend should have wrapped", exc_info=error)
    failed = ExecutionFailed(
        f"The engine failed while it ran: {type(error).__name__}.", hint="See the service's log for the cause."
    )
    failed.__cause__ = error
    return failed


def _closing() -> ShuttingDown:
    return ShuttingDown("The engine was closed before the request's turn.", hint="Send the request again in a moment.")
