"""Jobs: request a build, watch it, stop it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from app.api import openapi
from app.api.estimates import estimated_s, estimator
from app.api.events import Changes, job_stream
from app.api.options import build_options
from app.api.ranges import RangedFile
from app.api.responses import json_response, matches, not_modified, paged, tagged
from app.api.schemas import JobPage, JobSchema, WebhookSchema
from app.api.services import Services, Wired
from app.api.status import read_revision
from app.api.unchanged import Tags, jobs_tag
from app.api.uploads import Form, received_form
from app.domain.builds import Candidate, Precision, parsed_ref
from app.domain.errors import EngineNotFound, InvalidRequest
from app.domain.jobs import Job, JobState
from app.storage.codec import encode

router = APIRouter(tags=["jobs"])

WAIT_MAX_S = 300.0
_FILES = ("model", "calibration")
_EVENT_ID = re.compile(r"[0-9]{1,18}")


@router.post("/jobs", status_code=202, response_model=JobSchema, openapi_extra=openapi.JOB_FORM)
async def request_build(
    request: Request, wired: Wired, idempotency_key: Annotated[str | None, Header(max_length=200)] = None
) -> Response:
    """Upload a network (or name a stored one) and have an engine built from it.

    Multipart fields: `name`; `model` (file) or `model_id`; optionally `calibration` (zip) or `calibration_id`;
    `webhook` (URL that is told of the job's end, where the device allows it);
    build options as fields of their own or as one JSON object in `options`. With an `Idempotency-Key`, sending
    the same request again gives the same job.
    """
    limit_bytes = wired.settings.max_upload_mib << 20
    async with received_form(request, wired.store, _FILES, limit_bytes) as form:
        job = await run_in_threadpool(_build_from_form, wired, form, idempotency_key)
    return json_response(
        await run_in_threadpool(_whole, wired, job), status=202, headers={"Location": f"/jobs/{job.id}"}
    )


def _build_from_form(wired: Services, form: Form, idempotency_key: str | None) -> Job:
    """Check everything that can be checked before anything is stored."""
    fields = dict(form.fields)
    name = fields.pop("name", "")
    ids = {kind: fields.pop(f"{kind}_id", None) for kind in _FILES}
    webhook = fields.pop("webhook", None)
    wired.intake.webhooks.checked(webhook)
    options = build_options(fields)
    if not name:
        raise InvalidRequest("The field name is missing: what shall the engine be called?", hint="-F name=resnet18")
    has_calibration = "calibration" in form.files or ids["calibration"] is not None
    wired.intake.checked(name, options, has_calibration=has_calibration)
    for kind in _FILES:
        if kind in form.files and ids[kind] is not None:
            raise InvalidRequest(f"Both {kind} and {kind}_id were sent.", hint="Send one of them.")
    if "model" not in form.files and ids["model"] is None:
        raise InvalidRequest("The network is missing.", hint="-F model=@model.onnx, or model_id of a stored one.")
    # The archive first: it can be refused for more reasons, and nothing is stored until both were accepted.
    calibration, model = ids["calibration"], ids["model"]
    if "calibration" in form.files:
        wired.intake.check_calibration(form.files["calibration"].draft)
    if "model" in form.files:
        file = form.files["model"]
        model = wired.intake.receive_model(file.draft, file.name).digest
    if "calibration" in form.files:
        file = form.files["calibration"]
        calibration = wired.intake.receive_calibration(file.draft, file.name).digest
    assert model is not None
    asked = (name, model, calibration or "", encode(options), *([webhook] if webhook is not None else []))
    idempotency = _idempotency(idempotency_key, asked)
    return wired.intake.request_build(name, model, calibration, options, idempotency, webhook)


def _idempotency(key: str | None, asked: Sequence[str]) -> tuple[str, str] | None:
    return None if key is None else (key, hashlib.sha256("\n".join(asked).encode()).hexdigest())


@router.get("/jobs", response_model=JobPage)
async def list_jobs(
    request: Request,
    wired: Wired,
    state: JobState | None = None,
    name: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Response:
    """Jobs, newest first. `after` = the `next` of the page before. Send the ETag back: 304 when nothing changed."""
    etag = jobs_tag(await read_revision(wired, request.app.state.watch))
    if matches(request, etag):
        return not_modified(etag)
    page = await run_in_threadpool(_page, wired, state, name, after, limit)
    tags: Tags = request.app.state.tags
    tags.answered(request.scope["query_string"])
    return tagged(page, etag)


def _page(wired: Services, state: JobState | None, name: str | None, after: str | None, limit: int) -> JobPage:
    found = wired.queue.list(state=state, name=name, after=after, limit=limit + 1)
    jobs, following = paged(found, limit, lambda job: job.id)
    estimate = estimator(wired)
    return JobPage(jobs=[JobSchema.from_domain(job, estimated_s=estimate(job)) for job in jobs], next=following)


@router.get("/jobs/{job_id}", response_model=JobSchema)
async def get_job(
    request: Request, wired: Wired, job_id: str, wait: Annotated[float, Query(ge=0, le=WAIT_MAX_S)] = 0
) -> Response:
    """One job. `?wait=60` answers when it has ended, or after 60 seconds; with `If-None-Match`, when it changes."""
    changes: Changes = request.app.state.changes
    has_tag = "if-none-match" in request.headers
    job = await run_in_threadpool(wired.queue.get, job_id)
    async for _ in changes.until(wait, request.is_disconnected):
        if job.state.is_final or (has_tag and not matches(request, _tag(job))):
            break
        job = await run_in_threadpool(wired.queue.get, job_id)
    etag = _tag(job)
    if matches(request, etag):
        return not_modified(etag)
    return tagged(await run_in_threadpool(_whole, wired, job), etag)


def _whole(wired: Services, job: Job) -> JobSchema:
    schema = JobSchema.from_domain(job, _candidates(wired, job), estimated_s(wired, job))
    delivery = wired.webhooks.of(job.id)
    schema.webhook = WebhookSchema.from_domain(delivery) if delivery is not None else None
    return schema


def _candidates(wired: Services, job: Job) -> tuple[Candidate, ...] | None:
    """What a succeeded build with precision auto compared; None for other jobs, or when the engine is deleted."""
    if job.engine is None or job.options.precision is not Precision.AUTO:
        return None
    try:
        return wired.catalogue.engine(*parsed_ref(job.engine)).built.candidates
    except EngineNotFound:
        return None


def _tag(job: Job) -> str:
    return f'"{job.id}-{job.revision}"'


@router.get("/jobs/{job_id}/log", response_class=PlainTextResponse)
def get_log(wired: Wired, job_id: str) -> Response:
    """The build's whole log so far, as text."""
    path = wired.settings.job_log(wired.queue.get(job_id).id)
    if not path.is_file():
        return Response("", media_type="text/plain; charset=utf-8")
    return RangedFile(path, stat_result=path.stat(), media_type="text/plain; charset=utf-8")


@router.get("/jobs/{job_id}/events", response_class=StreamingResponse, responses=openapi.EVENTS_ANSWER)
async def get_events(
    request: Request, wired: Wired, job_id: str, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """Server-sent events: `state`, `stage`, `step`, `warning` and `log` as they happen, `end` with the job last."""
    await run_in_threadpool(wired.queue.get, job_id)
    after = int(last_event_id) if last_event_id and _EVENT_ID.fullmatch(last_event_id) else 0
    stream = job_stream(wired, request.app.state.changes, job_id, after)
    return StreamingResponse(
        stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    )


@router.delete("/jobs/{job_id}", response_model=JobSchema)
def cancel_job(wired: Wired, job_id: str) -> Response:
    """Cancel a queued or running job. The build process is killed within a second."""
    return json_response(JobSchema.from_domain(wired.queue.cancel(job_id)))


@router.post("/jobs/{job_id}/retry", status_code=202, response_model=JobSchema)
def retry_job(wired: Wired, job_id: str) -> Response:
    """Queue a failed or cancelled job again."""
    job = wired.queue.retry(job_id)
    return json_response(JobSchema.from_domain(job), status=202, headers={"Location": f"/jobs/{job.id}"})
