"""Records as the storage tests need them, and child processes that run a few lines of Python."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from app.domain.builds import (
    Accuracy,
    BuildOptions,
    BuiltEngine,
    CalibrationSet,
    Digest,
    Facts,
    Latency,
    ModelFormat,
    OutputAccuracy,
    Publication,
    SourceModel,
)
from app.domain.jobs import EventKind, Failure, Job, JobState
from app.domain.preprocess import Preprocess
from app.domain.tensors import DType, ShapeRange, Signature, TensorSpec
from app.storage.catalogue import Catalogue
from app.storage.jobs import JobQueue

FAILURE = Failure("compile_failed", "It failed.", "Change it.", "the runtime's own words")
NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=timezone.utc)


def digest_of(text: str) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}")


def source_model(text: str = "model") -> SourceModel:
    return SourceModel(digest_of(text), f"{text}.onnx", ModelFormat.ONNX, len(text), NOON)


def calibration_set(text: str = "samples") -> CalibrationSet:
    return CalibrationSet(digest_of(text), f"{text}.zip", len(text), 3, NOON)


def publication(
    name: str = "digits", key: str = "key", model: str = "model", calibration: Digest | None = None
) -> Publication:
    return Publication(
        name, key, digest_of(f"engine {key}"), digest_of(model), calibration, BuildOptions(), built_engine()
    )


def built_engine() -> BuiltEngine:
    image = TensorSpec("image", DType.FLOAT32, (-1, 1, 8, 8))
    scores = TensorSpec("scores", DType.FLOAT32, (-1, 10))
    ranges = {"image": ShapeRange((1, 1, 8, 8), (4, 1, 8, 8), (8, 1, 8, 8))}
    return BuiltEngine(
        size_bytes=1234,
        facts=Facts("onnxruntime", "1.17", "a processor", "aarch64"),
        signature=Signature((image,), (scores,), ranges, rows_max=8),
        preprocess=Preprocess("image", 8, 8, mean=(0.5,), std=(0.25,)),
        labels=("zero", "one"),
        accuracy=Accuracy(
            (OutputAccuracy("scores", 1e-6, 1e-5, 0.999999, 120.5),), 64, "random", "reference 1.17", 1.0
        ),
        latency=Latency(1.5, 2.5, 640.0, 1, 100),
        built_in_s=3.25,
        warnings=("the graph was not simplified",),
    )


def add_job(queue: JobQueue, catalogue: Catalogue, name: str = "digits", model: str = "model") -> Job:
    return queue.add(name, catalogue.add_model(source_model(model)).digest, None, BuildOptions())


class Clocks:
    """Time as the test sets it: a wall clock that may jump, and a monotonic one that does not."""

    def __init__(self) -> None:
        self.wall = NOON
        self.elapsed_s = 0.0

    def pass_s(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.elapsed_s += seconds


def job_in(state: JobState, queue: JobQueue, catalogue: Catalogue) -> Job:
    """A job that came into the state as jobs do; a running one is held by `worker`."""
    job = add_job(queue, catalogue)
    if state is JobState.QUEUED:
        return job
    if state is JobState.CANCELLED:
        return queue.cancel(job.id)
    queue.claim("worker")
    if state is JobState.SUCCEEDED:
        queue.succeed(job.id, "worker", publication())
    if state is JobState.FAILED:
        queue.fail(job.id, "worker", FAILURE)
    return queue.get(job.id)


WORKER_CALLS: dict[str, Callable[[JobQueue, str, str], object]] = {
    "beat": lambda queue, job, worker: queue.beat(job, worker),
    "advance": lambda queue, job, worker: queue.advance(job, worker, EventKind.STEP, None, "step"),
    "succeed": lambda queue, job, worker: queue.succeed(job, worker, publication()),
    "fail": lambda queue, job, worker: queue.fail(job, worker, FAILURE),
    "cancelled": lambda queue, job, worker: queue.cancelled(job, worker),
    "release": lambda queue, job, worker: queue.release(job, worker),
}


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that runs the code; `sys.argv[1:]` are the arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def in_threads(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
