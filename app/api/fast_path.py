"""FastPath: a planned request of a warm engine goes from its body to its answer without a task of its own.

What the middlewares do for other requests is done here by the same functions: the door, the counts, the request's id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol

from fastapi import Response

from app import logs
from app.access.door import Door, Shown
from app.api.heads import Begin, Head, Reply
from app.api.multipart import body_too_large
from app.api.observed import RequestCounts
from app.api.problems import CLIENT_CLOSED, problem_of
from app.api.request_ids import HEADER, request_id
from app.api.responses import Written, written
from app.domain.builds import EngineRecord
from app.domain.errors import ServiceError
from app.domain.tensors import Tensors
from app.serving.direct import DirectRun
from app.serving.service import Answer, InferenceService

log = logging.getLogger(__name__)


class Steps(Protocol):
    """How a protocol reads and writes the requests of one head; nothing here waits."""

    ref: str

    def form(self, body: memoryview, record: EngineRecord) -> Any:
        """What `inputs` and `written` want to know of this request; None: it takes the long way."""
        ...

    def learn(self, body: memoryview, record: EngineRecord) -> None:
        """Read what `form` knows once it has been read; the long way does so as well."""
        ...

    def inputs(self, body: memoryview, form: Any, record: EngineRecord) -> Tensors | memoryview:
        """As `InferenceService.begin` takes them."""
        ...

    def written(self, form: Any, answer: Answer) -> Written: ...

    def refused(self, error: Exception, path: str) -> Response: ...


class FastPath:
    """Begins requests; used on the event loop only."""

    def __init__(self, inference: InferenceService, door: Door, counts: RequestCounts, *, refuses: bool = True) -> None:
        """
        Args:
            refuses: answers whom the door does not let in; False: such requests, and those whose number is limited,
                take the long way, to where all of them are known.
        """
        self.inference = inference
        self.counts = counts
        self.refuses = refuses
        self.door = door

    def of(self, head: Head, route: str, steps: Steps) -> Begin:
        """How requests with this head begin.

        Args:
            route: the template that they are counted under.
        """
        return _Way(self, head, route, steps).begun


class _Way:
    """What all requests of one head have in common."""

    def __init__(self, fast_path: FastPath, head: Head, route: str, steps: Steps) -> None:
        self.inference = fast_path.inference
        self.steps = steps
        self.path = head.path
        self.sent_name = head.headers.get(HEADER)
        self._refuses = fast_path.refuses
        self._door = fast_path.door
        self._counts = fast_path.counts
        self._route = route
        self._shown = Shown.by(head.lines)  # read once; what follows from it is decided for each request

    def begun(self, body: memoryview, client: str, reply: Reply) -> Callable[[], None] | None:
        steps = self.steps
        record = self.inference.known(steps.ref)
        if record is None or not self.inference.is_warm(record):
            return None
        form = steps.form(body, record)
        if form is None and not self._refuses:
            steps.learn(body, record)
            form = steps.form(body, record)
        if form is None:
            return None
        pending = _Pending(self, form, reply)
        return pending.withdraw if pending.begin(body, record, client) else None

    def admitted(self, body_bytes: int, client: str) -> bool:
        """Let the request in; False: it takes the long way. Raises what `Door.authorised` raises, and BodyTooLarge."""
        try:
            visitor = self._door.authorised("POST", self.path, self._shown, client)
            if visitor.max_body_bytes is not None and body_bytes > visitor.max_body_bytes:
                raise body_too_large(visitor.max_body_bytes)
        except ServiceError:
            if self._refuses:
                raise
            return False
        return self._refuses or not visitor.requests_per_s

    def count(self, status: int, started_ns: int) -> None:
        self._counts.add(self._route, "POST", status, (time.perf_counter_ns() - started_ns) / 1e9)


class _Pending:
    """One request between its body and its answer."""

    __slots__ = ("_form", "_input_ns", "_is_over", "_name", "_reply", "_run", "_started_ns", "_way")

    def __init__(self, way: _Way, form: Any, reply: Reply) -> None:
        self._started_ns = time.perf_counter_ns()
        self._way = way
        self._form = form
        self._reply = reply
        self._name = request_id(way.sent_name)
        self._run: DirectRun | None = None
        self._input_ns = 0
        self._is_over = False

    def begin(self, body: memoryview, record: EngineRecord, client: str) -> bool:
        """Whether it will be answered; if not, nothing has happened."""
        way = self._way
        try:
            if not way.admitted(len(body), client):
                return False
        except ServiceError as error:
            self._refuse_soon(partial(problem_of, error))
            return True
        try:
            inputs = way.steps.inputs(body, self._form, record)
            self._input_ns = time.perf_counter_ns() - self._started_ns
            self._run = way.inference.begin(record, inputs, self._told)
        except Exception as error:
            self._refuse_soon(partial(way.steps.refused, error, way.path))
        return True

    def withdraw(self) -> None:
        """The client has gone."""
        if not self._is_over:
            run = self._run
            self._end(CLIENT_CLOSED)
            if run is not None:
                run.withdraw()

    def _told(self, answer: Answer | None, error: ServiceError | None) -> None:
        way = self._way
        try:
            if answer is None:
                assert error is not None
                raise error
            answered_ns = time.perf_counter_ns()
            written = way.steps.written(self._form, answer)
            output_ns = time.perf_counter_ns() - answered_ns
        except Exception as error:
            answer, written = None, self._problem(partial(way.steps.refused, error, way.path))
        self._answer(written)
        if answer is not None:
            way.inference.statistics.add_coding(answer.engine.ref, input_ns=self._input_ns, output_ns=output_ns)

    def _refuse_soon(self, make: Callable[[], Response]) -> None:
        """Answer in the next turn: whoever began this is not ready for an answer yet."""
        asyncio.get_running_loop().call_soon(self._answer, self._problem(make))

    def _problem(self, make: Callable[[], Response]) -> Written:
        """A problem, which names its request; so does what is logged while it is made."""
        return written(copy_context().run(self._named, make))

    def _named(self, make: Callable[[], Response]) -> Response:
        logs.request_id.set(self._name)
        return make()

    def _answer(self, written: Written) -> None:
        if self._is_over:
            return
        self._is_over = True
        lines = b"".join((written.lines, HEADER, b": ", self._name.encode(), b"\r\n"))
        try:
            self._reply(written.status, lines, written.parts)
        except Exception:  # the neighbours in the run are not to pay for it
            log.exception("an answer could not be written", extra={"request": self._name})
        self._end(written.status)

    def _end(self, status: int) -> None:
        self._is_over = True
        self._run = None  # it leads back here: a request is to be freed when it ends, not by the cycle collector
        self._way.count(status, self._started_ns)
