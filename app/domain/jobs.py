"""A build job: its states, and which may follow which."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from app.domain.builds import BuildOptions, Digest


class JobState(str, Enum):
    QUEUED = "queued"  # waits for a worker
    RUNNING = "running"  # a worker holds it and beats for it
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Stage(str, Enum):
    """Steps of a build, in their order."""

    EXPORT = "export"  # PyTorch → ONNX, or an archive unpacked
    INSPECT = "inspect"  # check the upload, find out its signature
    SIMPLIFY = "simplify"
    QUANTISE = "quantise"  # read the samples, measure ranges, put Q/DQ nodes into the graph
    COMPILE = "compile"
    VERIFY = "verify"  # against the unmodified source model
    PUBLISH = "publish"


class EventKind(str, Enum):
    STATE = "state"  # the job moved
    STAGE = "stage"  # the build entered a stage
    STEP = "step"  # something worth telling within a stage
    WARNING = "warning"  # the build goes on, but its result is not all that was asked for


@dataclass(frozen=True)
class Failure:
    """Why a job failed: for a program, for a person, and what to do."""

    code: str  # of a BuildFailed or another ServiceError: docs/errors.md
    message: str  # what was found and what was wanted
    hint: str  # what to do
    detail: str = ""  # the runtime's own words, or the last lines of the log


@dataclass(frozen=True)
class Job:
    id: str  # 16 hex digits
    name: str  # of the engine to publish
    model: Digest
    calibration: Digest | None
    options: BuildOptions
    state: JobState
    stage: Stage | None  # None before the first stage
    attempt: int  # 0 before the first claim
    cancel_requested: bool
    engine: str | None  # "name:version" once succeeded
    reused: bool  # succeeded without a build: an engine of the same key existed
    failure: Failure | None
    worker: str | None  # who holds it while running
    created_at: datetime
    started_at: datetime | None  # of the latest attempt
    finished_at: datetime | None
    heartbeat_at: datetime | None
    revision: int  # grows with every change that a client can see


@dataclass(frozen=True)
class JobEvent:
    seq: int  # grows over all jobs
    job: str
    at: datetime
    kind: EventKind
    stage: Stage | None
    message: str
    state: JobState | None = None  # of kind state: what the job became; None for others


FOLLOWS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(
        {JobState.RUNNING, JobState.CANCELLED, JobState.SUCCEEDED}  # succeeded at once: the engine existed
    ),
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.QUEUED}  # queued: its worker was lost
    ),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),  # retry
    JobState.CANCELLED: frozenset({JobState.QUEUED}),  # retry
}
