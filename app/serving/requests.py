"""Request: what waits for its turn of an engine; Run: what it gets; Answered: who is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

from app.domain.errors import ServiceError
from app.domain.tensors import Tensors


class Run(NamedTuple):
    """One request's part of a run."""

    outputs: Tensors  # this request's rows; they share no memory with another request's
    queue_ms: float  # from submit until a context has taken it
    compute_ms: float  # of the whole run
    batch_rows: int  # rows of the whole run
    is_first: bool = True  # of the requests that the run answered: they are as many as runs
    prepare_ms: float = 0.0  # what the context took to make the tensors


class Answered(Protocol):
    """Who waits for a run. An asyncio.Future is one; what is called here runs on the event loop and raises nothing."""

    def done(self) -> bool:
        """Whether nobody waits any more."""
        ...

    def set_result(self, run: Run, /) -> None: ...

    def set_exception(self, error: ServiceError, /) -> None: ...


class Request:
    """Tensors that wait for their turn, or that are made when it has come."""

    __slots__ = ("_make", "alone", "answer", "rows", "shapes", "submitted_s", "tensors")

    def __init__(self, tensors: Tensors | Callable[[], Tensors], rows: int, answer: Answered) -> None:
        """
        Args:
            tensors: checked against the signature. To be made: on the context's thread, for a run of their own.
        """
        self._make = tensors if callable(tensors) else None
        self.tensors: Tensors = {} if callable(tensors) else tensors
        self.rows = rows
        self.shapes = shapes_of(self.tensors)  # requests of equal shapes may be joined,
        self.alone = self._make is not None  # unless they run by themselves, as those of a failed joint run do
        self.answer = answer
        self.submitted_s = time.perf_counter()

    def prepare(self) -> None:
        """Make the tensors. Raises what their making raises."""
        if self._make is not None:
            self.tensors = self._make()


def shapes_of(tensors: Tensors) -> Hashable:
    """Equal for tensors that can be joined along axis 0."""
    if len(tensors) == 1:
        ((name, tensor),) = tensors.items()
        return (name, tensor.dtype, tensor.shape[1:])
    return tuple((name, tensors[name].dtype, tensors[name].shape[1:]) for name in sorted(tensors))
