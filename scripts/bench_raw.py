"""A child that runs networks in a bare loop: one JSON line in for each measurement, one out.

What it shows is the most that any server around the same runtime can reach on these processors.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from pydantic import TypeAdapter

from app.backends.onnxruntime_pair import graph_of
from app.domain.preprocess import Preprocess, row_from_image

onnxruntime.set_default_logger_severity(4)


@dataclass(frozen=True)
class Order:
    """One measurement."""

    model: str  # path of the ONNX file
    rows: str  # path of an .npy file of rows; or, with `recipe`, of a file of one JPEG
    seconds: float
    warm_s: float
    threads: int  # loops at once, each with one run at a time
    intra: int  # threads of the runtime inside one run
    batch: int = 1  # rows of one run
    recipe: dict[str, Any] | None = None  # of images: each run then decodes one first


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(measured(Order(**json.loads(line)))), flush=True)


def measured(order: Order) -> dict[str, Any]:
    """Rows a second of all loops together, and the times of single runs in ms."""
    work = _work(order)
    times_s: list[list[float]] = [[] for _ in range(order.threads)]
    begin_s = time.perf_counter() + order.warm_s
    loops = [threading.Thread(target=_loop, args=(work, begin_s, begin_s + order.seconds, kept)) for kept in times_s]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join()
    per_s = sum(len(kept) * order.batch / sum(kept) for kept in times_s)
    return {"per_s": per_s, "latencies_ms": [seconds * 1e3 for kept in times_s for seconds in kept]}


def _loop(work: Callable[[], object], begin_s: float, end_s: float, kept: list[float]) -> None:
    """Keep the seconds of each run; of one at least, however long it takes."""
    now_s = time.perf_counter()
    while now_s < end_s or not kept:
        started_s = now_s
        work()
        now_s = time.perf_counter()
        if started_s >= begin_s:
            kept.append(now_s - started_s)


def _work(order: Order) -> Callable[[], object]:
    session = _session(order.model, order.intra)
    if order.recipe is not None:
        recipe, jpeg = TypeAdapter(Preprocess).validate_python(order.recipe), Path(order.rows).read_bytes()
        return lambda: session.run(None, {recipe.input: row_from_image(jpeg, recipe)[np.newaxis]})
    rows = np.ascontiguousarray(np.resize(np.load(order.rows), (order.batch, *np.load(order.rows).shape[1:])))
    return lambda: session.run(None, {"image": rows})


@functools.cache
def _session(model: str, intra: int) -> Any:
    setup = onnxruntime.SessionOptions()
    setup.intra_op_num_threads = intra
    return onnxruntime.InferenceSession(
        graph_of(Path(model), intra) or model, setup, providers=["CPUExecutionProvider"]
    )


if __name__ == "__main__":
    main()
