"""One run of a context for the requests that it answers together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from app.backends.base import Context
from app.domain.tensors import Tensors
from app.serving.requests import Request


class Ran(NamedTuple):
    """What a run made, and when."""

    parts: list[Tensors]  # of each request
    taken_s: float  # when the context took it, by time.perf_counter(),
    started_s: float  # when all tensors were there
    ended_s: float


def executed(batch: Sequence[Request], context: Context) -> Ran:
    """Join, run and split where the context is, so that the event loop copies nothing while a thread runs."""
    taken_s = time.perf_counter()
    for request in batch:
        request.prepare()
    started_s = time.perf_counter()
    outputs = context.run_joined([request.tensors for request in batch], [request.rows for request in batch])
    return Ran(outputs, taken_s, started_s, time.perf_counter())


def outcome(batch: Sequence[Request], context: Context) -> tuple[Ran | None, BaseException | None]:
    """`executed`, or what it raised."""
    try:
        return executed(batch, context), None
    except Exception as error:
        return None, error
