"""Response bodies. Domain types that mean the same outside are used as they are."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson
from pydantic import BaseModel

from app.domain.builds import (
    Accuracy,
    BuildOptions,
    CalibrationSet,
    Candidate,
    EngineRecord,
    Facts,
    Latency,
    SourceModel,
)
from app.domain.jobs import Failure, Job, JobEvent, JobState, Stage
from app.domain.preprocess import Preprocess
from app.domain.tensors import Signature
from app.serving.seats import EngineState, WarmState
from app.storage.codec import encode


def options_given(options: BuildOptions) -> dict[str, Any]:
    """The options that differ from their defaults, without the labels: engines list those."""
    given: dict[str, Any] = orjson.loads(encode(options))
    del given["labels"]
    return {name: value for name, value in given.items() if name == "precision" or value != _DEFAULTS[name]}


_DEFAULTS: dict[str, Any] = orjson.loads(encode(BuildOptions()))


class ModelSchema(BaseModel):
    """A stored network. Its id is the digest of its bytes."""

    id: str
    name: str
    format: str
    size_bytes: int
    uploaded_at: datetime

    @classmethod
    def from_domain(cls, model: SourceModel) -> ModelSchema:
        return cls(
            id=model.digest,
            name=model.name,
            format=model.format.value,
            size_bytes=model.size_bytes,
            uploaded_at=model.uploaded_at,
        )


class CalibrationSchema(BaseModel):
    """A stored archive of samples. Its id is the digest of its bytes."""

    id: str
    name: str
    size_bytes: int
    entries: int
    uploaded_at: datetime

    @classmethod
    def from_domain(cls, calibration: CalibrationSet) -> CalibrationSchema:
        return cls(
            id=calibration.digest,
            name=calibration.name,
            size_bytes=calibration.size_bytes,
            entries=calibration.entries,
            uploaded_at=calibration.uploaded_at,
        )


class JobSchema(BaseModel):
    id: str
    name: str
    state: JobState
    stage: Stage | None
    attempt: int
    cancel_requested: bool
    engine: str | None
    reused: bool
    failure: Failure | None
    model: str
    calibration: str | None
    options: dict[str, Any]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    candidates: list[Candidate] | None  # of a succeeded build with precision auto, in GET /jobs/{id} only
    links: dict[str, str]

    @classmethod
    def from_domain(cls, job: Job, candidates: tuple[Candidate, ...] | None = None) -> JobSchema:
        here = f"/jobs/{job.id}"
        links = {"self": here, "log": f"{here}/log", "events": f"{here}/events"}
        if job.engine is not None:
            links |= {"engine": f"/engines/{job.engine}", "infer": f"/infer/{job.engine}"}
        return cls(
            id=job.id,
            name=job.name,
            state=job.state,
            stage=job.stage,
            attempt=job.attempt,
            cancel_requested=job.cancel_requested,
            engine=job.engine,
            reused=job.reused,
            failure=job.failure,
            model=job.model,
            calibration=job.calibration,
            options=options_given(job.options),
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            candidates=list(candidates) if candidates is not None else None,
            links=links,
        )


class JobPage(BaseModel):
    jobs: list[JobSchema]
    next: str | None  # `after` of the next page; null on the last


class EventSchema(BaseModel):
    seq: int
    job: str
    at: datetime
    kind: str
    stage: str | None
    message: str

    @classmethod
    def from_domain(cls, event: JobEvent) -> EventSchema:
        return cls(
            seq=event.seq,
            job=event.job,
            at=event.at,
            kind=event.kind.value,
            stage=event.stage.value if event.stage else None,
            message=event.message,
        )


class WarmSchema(BaseModel):
    """How an engine stands in memory."""

    state: EngineState
    is_pinned: bool  # stays until unloaded by name
    keep_alive_s: float  # unused for so long, it leaves; 0: when its room is needed
    eviction_position: int | None  # 1 leaves first when room is needed; null: loading, in use, pinned or leaving
    device_bytes: int
    contexts: int
    leases: int  # requests that use it or wait for it
    waiting: int  # rows
    requests: int  # answered since it was loaded, as are rows and runs
    rows: int
    runs: int  # a run answers one request or several
    load_s: float
    loaded_at: datetime | None
    last_used_at: datetime


class EngineSchema(BaseModel):
    ref: str
    name: str
    version: int
    precision: str  # what was built: never auto
    int8_method: str | None
    backend: str
    size_bytes: int
    model: str
    calibration: str | None
    options: dict[str, Any]
    preprocess: Preprocess | None
    labels: list[str]
    signature: Signature
    accuracy: Accuracy
    latency: Latency
    candidates: list[Candidate]  # all that precision auto compared; empty without it
    built_in_s: float
    warnings: list[str]
    facts: Facts
    created_at: datetime
    warm: WarmSchema | None  # null: cold
    links: dict[str, str]

    @classmethod
    def from_domain(cls, engine: EngineRecord, warm: WarmState | None) -> EngineSchema:
        built, here = engine.built, f"/engines/{engine.ref}"
        return cls(
            ref=engine.ref,
            name=engine.name,
            version=engine.version,
            precision=built.precision.value,
            int8_method=built.int8_method.value if built.int8_method else None,
            backend=built.facts.backend,
            size_bytes=built.size_bytes,
            model=engine.model,
            calibration=engine.calibration,
            options=options_given(engine.options),
            preprocess=built.preprocess,
            labels=list(built.labels),
            signature=built.signature,
            accuracy=built.accuracy,
            latency=built.latency,
            candidates=list(built.candidates),
            built_in_s=built.built_in_s,
            warnings=list(built.warnings),
            facts=built.facts,
            created_at=engine.created_at,
            warm=WarmSchema.model_validate(warm, from_attributes=True) if warm else None,
            links={
                "self": here,
                "file": f"{here}/file",
                "infer": f"/infer/{engine.ref}",
                "model": f"/models/{engine.model}",
            },
        )
