"""Requests to /infer as a fast client sends them, and how long they take."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from types import TracebackType
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

_TIMEOUT_S = 300.0  # a cold engine loads before its first answer
_RAW = "application/octet-stream"
_WARMING = 5  # runs that are not counted


class Refused(Exception):
    """The service answered with an error; its words are the message."""


class Line:
    """One connection that is kept open. Engines with one float32 input and one output."""

    def __init__(self, url: str, ref: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self._connection = http.client.HTTPConnection(address.hostname, address.port, timeout=_TIMEOUT_S)
        self._path = f"/infer/{ref}"

    def __enter__(self) -> Line:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def tensor(self, rows: NDArray[np.float32]) -> NDArray[np.generic]:
        """Send a tensor as bytes; the output, as bytes too."""
        shape = "x".join(map(str, rows.shape))
        return self._output(f"{self._path}?shape={shape}", rows.tobytes(), _RAW)

    def image(self, data: bytes, kind: str) -> NDArray[np.generic]:
        """Send an encoded image of media type `kind`; the output of the network itself."""
        return self._output(self._path, data, kind)

    def _output(self, path: str, body: bytes, kind: str) -> NDArray[np.generic]:
        self._connection.request("POST", path, body, {"Content-Type": kind, "Accept": _RAW})
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise Refused(f"POST {path} answered {answer.status}: {data[:500].decode(errors='replace')}")
        shape = tuple(int(length) for length in answer.headers["X-Tensor-Shape"].split("x"))
        return np.frombuffer(data, np.dtype(answer.headers["X-Tensor-Dtype"])).reshape(shape)


def latency_ms(ask: Callable[[], object], runs: int, budget_s: float) -> dict[str, float]:
    """Time calls one after the other: at most `runs`, at most for `budget_s`.

    Returns:
        `p50`, `p99` in ms; `runs` counted.
    """
    for _ in range(_WARMING):
        ask()
    times_s: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times_s) < runs and (not times_s or time.perf_counter() < end):
        start = time.perf_counter()
        ask()
        times_s.append(time.perf_counter() - start)
    p50, p99 = (float(value) for value in np.percentile(times_s, (50, 99)) * 1e3)
    return {"p50": p50, "p99": p99, "runs": len(times_s)}
