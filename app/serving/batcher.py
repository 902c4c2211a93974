"""MicroBatcher: joins the requests that have gathered into one run, and splits its answer."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from app.backends.base import NotByRow
from app.domain.errors import ExecutionFailed, QueueFull, ServiceError, ShuttingDown
from app.domain.tensors import Signature, Tensors
from app.serving.contexts import ContextThread
from app.serving.line import Line
from app.serving.requests import Answered, Request, Run
from app.serving.runs import Ran, executed, outcome
from app.serving.tuning import ON_LOOP_JOINT_S, ON_LOOP_S, Pace

log = logging.getLogger(__name__)

LOOKS_MAX = 2  # turns that a run on the event loop waits for more requests, as long as each brings some


class MicroBatcher:
    """A queue in front of an engine's contexts.

    A free context takes, at the next turn of the event loop or soon after, what has gathered: first come, first
    served (see `Line`), up to `rows_max` rows of one shape. No request waits for a timer. A request of more rows than
    that runs by itself.
    """

    def __init__(
        self,
        contexts: Sequence[ContextThread],
        *,
        rows_max: int,
        queue_rows_max: int,
        crowd_rows: int = 1,
        wide: ContextThread | None = None,
        pace: Pace | None = None,
    ) -> None:
        """
        Args:
            rows_max: most rows of a joint run (`rows_limit`); 1 = requests are never joined.
            queue_rows_max: most rows that may wait.
            crowd_rows: most rows of a joint run where `rows_max` is 1, of requests that have come as tensors.
            wide: a context with every processor, for when fewer requests wait than there are other contexts; nothing
                runs beside it. None: there is none.
            pace: of an engine that may run on any thread: short runs then stay on the event loop; None: none does.
        """
        self.runs = 0
        self.requests = 0  # answered
        self.rows = 0  # answered
        self._idle = list(contexts)
        self._working: deque[ContextThread] = deque()  # with one run, the oldest first
        self._occupied: set[ContextThread] = set()  # with one run, and another behind it
        self._enough = len(contexts)  # requests that make use of every processor without the wide context
        self._wide = wide  # None while it runs
        self._lent_wide: ContextThread | None = None  # while it runs
        self._pace = pace
        self._rows_max = rows_max
        self._crowd_rows = crowd_rows
        self._queue_rows_max = queue_rows_max
        self._line = Line()
        self._running = 0
        self._rest: asyncio.Future[None] | None = None  # somebody waits for nothing to run
        self._is_woken = False
        self._looks = self._seen = 0  # turns that the next run has waited, and requests that were there at the last
        self._is_closed = False

    @property
    def waiting_rows(self) -> int:
        return self._line.rows

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
        answer: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        request = self.enqueue(tensors, rows, answer)
        try:
            return await answer
        except asyncio.CancelledError:
            self.forget(request)
            if answer.done() and not answer.cancelled():
                answer.exception()  # it came in the turn of the cancellation; nobody else will look at it
            raise

    def enqueue(self, tensors: Tensors | Callable[[], Tensors], rows: int, answer: Answered) -> Request:
        """As `submit`, for one who is called when the answer is there; QueueFull and ShuttingDown are raised at once
        where they are known at once.

        Args:
            tensors: or what makes them, for an engine that `prepares`; what it raises is the answer.
        """
        self._refuse_if_closed_or_full(rows)
        request = Request(tensors, rows, answer)
        self._line.add(request)
        self._wake()
        return request

    def forget(self, request: Request) -> None:
        """Its client has gone: if it still waits, it is not run."""
        self._line.remove(request)

    async def close(self) -> None:
        """Refuse what waits, and wait for what runs."""
        self._is_closed = True
        self._fail_queue()
        if self._running:
            self._rest = asyncio.get_running_loop().create_future()
            await self._rest

    def _refuse_if_closed_or_full(self, rows: int) -> None:
        if self._is_closed:
            raise _closing()
        if self._line.waiting and self._line.rows + rows > self._queue_rows_max:
            raise QueueFull(
                f"{self.waiting_rows} rows wait for this engine, {rows} more came, and at most"
                f" {self._queue_rows_max} may wait.",
                hint="Send the request again in a moment, or raise queue_rows_max.",
            )

    def _wake(self) -> None:
        # At the next turn, not now: requests that arrive within this turn are then in the same run.
        if not self._is_woken:
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._start_runs)

    def _start_runs(self) -> None:
        self._is_woken = False
        if self._looks_again():
            self._wake()
            return
        while self._line.waiting and (context := self._free_context()) is not None:
            stays = self._stays_on_loop(self._line.waiting[0].rows)
            batch = self._taken(stays)
            self._running += 1
            if stays:
                self._finish(context, batch, *outcome(batch, context.context))
                return  # the next turn is others'; what still waits was woken
            context.start(partial(executed, batch), partial(self._finish, context, batch))

    def _looks_again(self) -> bool:
        """Whether a run on the event loop waits one turn more, as several requests have come: while they were read,
        others may have come too, which would have to wait for this run, its answers, and the next run's."""
        waiting = len(self._line.waiting)
        more = max(1, self._seen) < waiting < self._rows_max and self._looks < LOOKS_MAX and self.is_short
        self._looks, self._seen = (self._looks + 1, waiting) if more else (0, 0)
        return more

    def _free_context(self) -> ContextThread | None:
        if self._lent_wide is not None:  # a run beside it would slow both down by more than it waits
            return None
        if self._wide is not None and not self._running and len(self._line.waiting) < self._enough:
            context, self._wide = self._wide, None
            self._lent_wide = context
            return context
        if self._idle:
            self._working.append(self._idle.pop())
            return self._working[-1]
        if self._working and self._looks_ahead():
            self._occupied.add(context := self._working.popleft())
            return context
        return None

    def _looks_ahead(self) -> bool:
        """Whether a context that runs is given its next run already: while many wait that nothing is gained by
        joining, so that it does not rest for as long as the event loop takes to hear of its end. Not with a run of many
        rows: a smaller request that comes meanwhile could not pass it any more."""
        joins = self._joint_rows_max > 1
        is_crowded = self._pace is not None and not joins and len(self._line.waiting) >= self._enough
        return is_crowded and self._line.waiting[0].rows == 1 and not self.is_short

    def _free(self, context: ContextThread) -> None:
        """One of the context's runs has ended."""
        if context is self._lent_wide:
            self._wide, self._lent_wide = context, None
        elif context in self._occupied:
            self._occupied.remove(context)
            self._working.append(context)
        else:
            self._working.remove(context)
            self._idle.append(context)

    @property
    def prepares(self) -> bool:
        """Whether the contexts make tensors as well as anybody: on the same processors, for runs of one request."""
        return self._pace is not None and self._rows_max == 1 and not self.is_short

    @property
    def is_short(self) -> bool:
        """Whether runs of one row stay on the event loop."""
        return self._stays_on_loop(1)

    @property
    def _joint_rows_max(self) -> int:
        """Most rows of a joint run, whether joining pays or not."""
        return max(self._rows_max, self._crowd_rows)

    def _stays_on_loop(self, rows: int) -> bool:
        return self._pace is not None and self._pace.seconds(rows) <= ON_LOOP_S

    def _taken(self, stays_on_loop: bool) -> list[Request]:
        rows_max = self._joint_rows_max
        if stays_on_loop and self._pace is not None:
            rows_max = min(rows_max, self._pace.rows_within(ON_LOOP_JOINT_S))
        return self._line.taken(rows_max)

    def _finish(
        self, context: ContextThread, batch: list[Request], ran: Ran | None, error: BaseException | None
    ) -> None:
        self._running -= 1
        self._free(context)
        self.runs += 1
        if ran is not None:
            self._deliver(batch, ran)
        elif len(batch) == 1:
            _fail(batch[0], _execution_failed(error))
        else:
            self._retry_alone(batch, error)
        if self._line.waiting:
            self._wake()
        if self._rest is not None and not self._running and not self._rest.done():
            self._rest.set_result(None)

    def _deliver(self, batch: list[Request], ran: Ran) -> None:
        batch_rows = sum(request.rows for request in batch)
        took_s = ran.ended_s - ran.started_s
        if self._line.waiting:
            self._line.learn(batch_rows, took_s)
        if self._pace is not None:
            self._pace.learn(batch_rows, took_s)
        is_first = True
        for request, outputs in zip(batch, ran.parts, strict=True):
            if request.answer.done():  # its client has gone
                continue
            self.requests += 1
            self.rows += request.rows
            queue_ms, prepare_ms = (ran.taken_s - request.submitted_s) * 1e3, (ran.started_s - ran.taken_s) * 1e3
            request.answer.set_result(Run(outputs, queue_ms, took_s * 1e3, batch_rows, is_first, prepare_ms))
            is_first = False

    def _retry_alone(self, batch: list[Request], error: BaseException | None) -> None:
        """Put a failed joint run's requests back at the head, each to run by itself: one may have spoilt it."""
        if isinstance(error, NotByRow) and self._joint_rows_max > 1:
            log.error("an engine does not answer row by row; its requests are joined no more: %s", error)
            self._rows_max = self._crowd_rows = 1
        for request in reversed(batch):
            if not request.answer.done():
                request.alone = True
                self._line.put_back(request)
        if self._is_closed:
            self._fail_queue()

    def _fail_queue(self) -> None:
        while self._line.waiting:
            for request in self._line.taken(rows_max=1):
                _fail(request, _closing())


def rows_limit(signature: Signature) -> int:
    """Most rows of one run: `rows_max`, or less where the ranges allow less."""
    longest = [allowed.max[0] for allowed in signature.ranges.values() if allowed.max]
    return max(1, min([signature.rows_max, *longest]))


def _fail(request: Request, error: ServiceError) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)


def _execution_failed(error: BaseException | None) -> ServiceError:
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
