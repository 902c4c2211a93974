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
from app.access.door import Door
from app.api.heads import Begin, Head, Reply
from app.api.multipart import body_too_large
from app.api.observed import RequestCounts
from app.api.problems import CLIENT_CLOSED, problem_of
from app.api.request_ids import HEADER, request_id
from app.api.responses import TensorResponse
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
        """What `inputs` and `response` want to know of this request; None: it takes the long way."""
        ...

    def learn(self, body: memoryview, record: EngineRecord) -> None:
        """Read what `form` knows once it has been read; the long way does so as well."""
        ...

    def inputs(self, body: memoryview, form: Any, record: EngineRecord) -> Tensors: ...

    def response(self, form: Any, answer: Answer) -> Response: ...

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
        self._door = door

    def of(self, head: Head, route: str, steps: Steps) -> Begin:
        """How requests with this head begin.

        Args:
            route: the template that they are counted under.
        """
        return partial(self._begun, head, route, steps)

    def admitted(self, head: Head, client: str) -> bool:
        """Let the request in; False: it takes the long way. Raises what `Door.authorised` raises, and BodyTooLarge."""
        try:
            visitor = self._door.authorised("POST", head.path, head.lines, client)
            if visitor.max_body_bytes is not None and head.body_bytes > visitor.max_body_bytes:
                raise body_too_large(visitor.max_body_bytes)
        except ServiceError:
            if self.refuses:
                raise
            return False
        return self.refuses or not visitor.requests_per_s

    def _begun(
        self, head: Head, route: str, steps: Steps, body: memoryview, client: str, reply: Reply
    ) -> Callable[[], None] | None:
        record = self.inference.known(steps.ref)
        if record is None or not self.inference.is_warm(record):
            return None
        form = steps.form(body, record)
        if form is None and not self.refuses:
            steps.learn(body, record)
            form = steps.form(body, record)
        if form is None:
            return None
        pending = _Pending(self, head, route, steps, form, reply)
        return pending.withdraw if pending.begin(body, record, client) else None


class _Pending:
    """One request between its body and its answer."""

    __slots__ = (
        *("_form", "_head", "_input_ns", "_is_over", "_name", "_path"),
        *("_reply", "_route", "_run", "_started_ns", "_steps"),
    )

    def __init__(self, path: FastPath, head: Head, route: str, steps: Steps, form: Any, reply: Reply) -> None:
        self._started_ns = time.perf_counter_ns()
        self._path = path
        self._head = head
        self._route = route
        self._steps = steps
        self._form = form
        self._reply = reply
        self._name = request_id(head.headers.get(HEADER))
        self._run: DirectRun | None = None
        self._input_ns = 0
        self._is_over = False

    def begin(self, body: memoryview, record: EngineRecord, client: str) -> bool:
        """Whether it will be answered; if not, nothing has happened."""
        try:
            if not self._path.admitted(self._head, client):
                return False
        except ServiceError as error:
            self._refuse_soon(partial(problem_of, error))
            return True
        try:
            inputs = self._steps.inputs(body, self._form, record)
            self._input_ns = time.perf_counter_ns() - self._started_ns
            self._run = self._path.inference.begin(record, inputs, self._told)
        except Exception as error:
            self._refuse_soon(partial(self._steps.refused, error, self._head.path))
        return True

    def withdraw(self) -> None:
        """The client has gone."""
        if not self._is_over:
            run = self._run
            self._end(CLIENT_CLOSED)
            if run is not None:
                run.withdraw()

    def _told(self, answer: Answer | None, error: ServiceError | None) -> None:
        try:
            if answer is None:
                assert error is not None
                raise error
            answered_ns = time.perf_counter_ns()
            response = self._steps.response(self._form, answer)
            output_ns = time.perf_counter_ns() - answered_ns
            self._path.inference.statistics.add_coding(answer.engine.ref, input_ns=self._input_ns, output_ns=output_ns)
        except Exception as error:
            response = self._made(partial(self._steps.refused, error, self._head.path))
        self._answer(response)

    def _refuse_soon(self, make: Callable[[], Response]) -> None:
        """Answer in the next turn: whoever began this is not ready for an answer yet."""
        asyncio.get_running_loop().call_soon(self._answer, self._made(make))

    def _made(self, make: Callable[[], Response]) -> Response:
        """A problem, which names its request; so does what is logged while it is made."""
        return copy_context().run(self._named, make)

    def _named(self, make: Callable[[], Response]) -> Response:
        logs.request_id.set(self._name)
        return make()

    def _answer(self, response: Response) -> None:
        if self._is_over:
            return
        self._end(response.status_code)
        parts = response.parts if isinstance(response, TensorResponse) else [response.body]
        try:
            self._reply(response.status_code, [*response.raw_headers, (HEADER, self._name.encode())], parts)
        except Exception:  # the neighbours in the run are not to pay for it
            log.exception("an answer could not be written", extra={"request": self._name})

    def _end(self, status: int) -> None:
        self._is_over = True
        self._run = None  # which holds this one
        self._path.counts.add(self._route, "POST", status, (time.perf_counter_ns() - self._started_ns) / 1e9)
