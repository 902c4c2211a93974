"""Response bodies. Domain types that mean the same outside are used as they are."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Any

import orjson
from pydantic import BaseModel, Field

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
from app.domain.model_facts import ModelFacts
from app.domain.preprocess import Preprocess
from app.domain.tensors import Signature
from app.domain.webhooks import Delivery, DeliveryState, parsed
from app.serving.seats import EngineState, WarmState
from app.storage.codec import encode
from app.storage.jobs import utc_now


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


class Inspection(str, Enum):
    """How far a look into a stored network has come."""

    DONE = "done"
    FAILED = "failed"
    PENDING = "pending"  # ask again


class InspectedModelSchema(ModelSchema):
    """A stored network, and what is in it."""

    inspection: Inspection
    facts: ModelFacts | None  # null unless done
    failure: Failure | None  # that a build would meet; null unless failed

    @classmethod
    def of(cls, model: SourceModel, told: ModelFacts | Failure | None) -> InspectedModelSchema:
        """The model with what its inspection told; None: nothing yet."""
        stored = ModelSchema.from_domain(model).model_dump()
        if isinstance(told, Failure):
            return cls(**stored, inspection=Inspection.FAILED, facts=None, failure=told)
        state = Inspection.PENDING if told is None else Inspection.DONE
        return cls(**stored, inspection=state, facts=told, failure=None)


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


class WebhookSchema(BaseModel):
    """What became of telling somebody of the job's end. The rest of the URL may be secret."""

    host: str
    state: DeliveryState
    attempts: int  # since the job's last end
    status: int | None  # of the last answer
    error: str | None  # of the last attempt
    next_at: datetime | None  # of the next attempt

    @classmethod
    def from_domain(cls, delivery: Delivery) -> WebhookSchema:
        return cls(
            host=parsed(delivery.url).authority,
            state=delivery.state,
            attempts=delivery.attempts,
            status=delivery.status,
            error=delivery.error,
            next_at=delivery.next_at,
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
    elapsed_s: float | None  # since the latest attempt began, at its end if it has ended; null before it
    estimated_s: float | None  # how long builds like it took on this device; null: unknown, or the job has ended
    candidates: list[Candidate] | None = Field(
        description="Of a succeeded build with precision auto; null in lists of jobs and for other builds."
    )
    webhook: WebhookSchema | None = Field(None, description="Null in lists of jobs, and where the job has none.")
    links: dict[str, str]

    @classmethod
    def from_domain(
        cls, job: Job, candidates: tuple[Candidate, ...] | None = None, estimated_s: float | None = None
    ) -> JobSchema:
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
            elapsed_s=_between_s(job.started_at, job.finished_at or utc_now()),
            estimated_s=estimated_s,
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
    elapsed_s: float | None  # since the latest attempt began; null before it
    estimated_s: float | None  # as the job's
    state: str | None  # of kind state: what the job became

    @classmethod
    def from_domain(cls, event: JobEvent, started_at: datetime | None, estimated_s: float | None) -> EventSchema:
        return cls(
            seq=event.seq,
            job=event.job,
            at=event.at,
            kind=event.kind.value,
            stage=event.stage.value if event.stage else None,
            message=event.message,
            elapsed_s=_between_s(started_at, event.at),
            estimated_s=estimated_s,
            state=event.state.value if event.state else None,
        )


def _between_s(start: datetime | None, end: datetime) -> float | None:
    """None when the end lies before, or nothing has started."""
    return round((end - start).total_seconds(), 1) if start is not None and end >= start else None


class WarmSchema(BaseModel):
    """How an engine stands in memory, since it was loaded; engines of equal files share one place there."""

    state: EngineState
    is_pinned: bool  # by this name: stays until unloaded by it
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

    @classmethod
    def of(cls, ref: str, warm: WarmState) -> WarmSchema:
        return cls.model_validate({**vars(warm), "is_pinned": ref in warm.pins})


class EngineSchema(BaseModel):
    ref: str
    name: str
    version: int
    precision: str  # what was built: never auto
    int8_method: str | None
    backend: str
    size_bytes: int
    model: str | None  # null: uploaded as an engine
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
    damaged_at: datetime | None  # when its file was found damaged; null: it is whole
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
            damaged_at=engine.damaged_at,
            warm=WarmSchema.of(engine.ref, warm) if warm else None,
            links={
                "self": here,
                "file": f"{here}/file",
                "infer": f"/infer/{engine.ref}",
                **({"model": f"/models/{engine.model}"} if engine.model else {}),
            },
        )
