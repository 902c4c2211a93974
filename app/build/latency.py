"""How fast an engine is."""

from __future__ import annotations

import time

import numpy as np

from app.backends.base import Context
from app.domain.builds import Latency
from app.domain.tensors import Tensors

_RUNS = 200  # at most,
_RUNS_S = 2.0  # in so many seconds


def measured_latency(context: Context, inputs: Tensors, rows: int) -> Latency:
    """Time runs, one after the other, on one context that has run before."""
    times_s: list[float] = []
    end = time.perf_counter() + _RUNS_S
    while len(times_s) < _RUNS and (not times_s or time.perf_counter() < end):
        start = time.perf_counter()
        context.run(inputs)
        times_s.append(time.perf_counter() - start)
    p50, p99 = np.percentile(times_s, (50, 99)) * 1e3
    return Latency(
        p50_ms=float(p50),
        p99_ms=float(p99),
        throughput_per_s=rows * len(times_s) / sum(times_s),
        rows=rows,
        runs=len(times_s),
    )
