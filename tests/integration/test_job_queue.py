from __future__ import annotations

import re
from dataclasses import replace

import pytest
from storage_fixtures import (
    NOON,
    add_job,
    calibration_set,
    digest_of,
    in_threads,
    job_in,
    publication,
    source_model,
)

from app.domain.builds import BuildOptions, Precision
from app.domain.errors import (
    CalibrationNotFound,
    IdempotencyConflict,
    InvalidRequest,
    JobNotFound,
    JobStateConflict,
    ModelNotFound,
)
from app.domain.jobs import EventKind, JobState, Stage


def test_a_job_waits_with_everything_that_was_asked_for(timed, catalogue):
    model, samples = catalogue.add_model(source_model()), catalogue.add_calibration(calibration_set())
    options = BuildOptions("onnxruntime", Precision.FP32, max_shapes={"image": (8, 1, 8, 8)}, labels=("a", "b"))

    job = timed.add("digits", model.digest, samples.digest, options)

    assert re.fullmatch("[0-9a-f]{16}", job.id)
    assert (job.name, job.model, job.calibration, job.options) == ("digits", model.digest, samples.digest, options)
    assert (job.state, job.attempt, job.stage, job.created_at) == (JobState.QUEUED, 0, None, NOON)
    assert timed.get(job.id) == job


def test_a_job_needs_sources_that_are_stored(queue, catalogue):
    with pytest.raises(ModelNotFound):
        queue.add("digits", digest_of("unknown"), None, BuildOptions())
    model = catalogue.add_model(source_model())
    with pytest.raises(CalibrationNotFound):
        queue.add("digits", model.digest, digest_of("unknown"), BuildOptions())

    assert queue.list() == []


def test_an_unknown_job_is_not_found(queue):
    for use in (queue.get, queue.cancel, queue.retry):
        with pytest.raises(JobNotFound):
            use("0" * 16)


def test_the_same_idempotency_key_and_request_are_the_same_job(queue, catalogue):
    model = catalogue.add_model(source_model()).digest

    first = queue.add("digits", model, None, BuildOptions(), ("key", "request"))
    second = queue.add("digits", model, None, BuildOptions(), ("key", "request"))
    other = queue.add("digits", model, None, BuildOptions(), ("other key", "request"))

    assert first == second
    assert other.id != first.id


def test_an_idempotency_key_for_another_request_is_refused(queue, catalogue):
    model = catalogue.add_model(source_model()).digest
    first = queue.add("digits", model, None, BuildOptions(), ("key", "request"))

    with pytest.raises(IdempotencyConflict, match=first.id):
        queue.add("digits", model, None, BuildOptions(), ("key", "another request"))

    assert queue.list() == [first]


def test_an_idempotency_key_is_forgotten_after_a_day(timed, catalogue, clocks):
    model = catalogue.add_model(source_model()).digest
    first = timed.add("digits", model, None, BuildOptions(), ("key", "request"))

    clocks.pass_s(23 * 3600)
    assert timed.add("digits", model, None, BuildOptions(), ("key", "request")).id == first.id
    clocks.pass_s(2 * 3600)
    assert timed.add("digits", model, None, BuildOptions(), ("key", "request")).id != first.id


def test_threads_that_send_one_idempotency_key_at_once_get_one_job(queue, catalogue):
    model = catalogue.add_model(source_model()).digest

    def send() -> None:
        queue.add("digits", model, None, BuildOptions(), ("key", "request"))

    in_threads(8, send)

    assert len(queue.list()) == 1


def test_a_build_of_an_engine_that_exists_succeeds_at_once(queue, catalogue):
    job_in(JobState.SUCCEEDED, queue, catalogue)

    same = queue.add_finished(publication(), ("key", "request"))
    renamed = queue.add_finished(publication("other"))

    assert (same.state, same.engine, same.reused) == (JobState.SUCCEEDED, "digits:1", True)
    assert (renamed.state, renamed.engine, renamed.reused) == (JobState.SUCCEEDED, "other:1", True)
    assert same.finished_at is not None and same.started_at is None
    assert queue.add_finished(publication(), ("key", "request")) == same


def test_a_build_of_an_engine_that_was_just_deleted_is_queued(queue, catalogue):
    job_in(JobState.SUCCEEDED, queue, catalogue)
    catalogue.delete_engine("digits", 1)

    job = queue.add_finished(publication())

    assert (job.state, job.engine, job.reused) == (JobState.QUEUED, None, False)
    assert catalogue.engines() == []


def test_a_waiting_job_is_cancelled_at_once(queue, catalogue):
    job = add_job(queue, catalogue)

    cancelled = queue.cancel(job.id)

    assert cancelled.state is JobState.CANCELLED and cancelled.finished_at is not None
    assert queue.cancel(job.id) == cancelled
    assert queue.claim("worker") is None


def test_a_running_job_is_cancelled_by_its_worker(queue, catalogue):
    job = job_in(JobState.RUNNING, queue, catalogue)

    asked = queue.cancel(job.id)

    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    assert asked.revision > job.revision
    assert queue.cancel(job.id) == asked
    assert queue.beat(job.id, "worker") is True
    assert queue.cancelled(job.id, "worker").state is JobState.CANCELLED


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED])
def test_a_job_that_has_ended_cannot_be_cancelled(queue, catalogue, state):
    job = job_in(state, queue, catalogue)

    with pytest.raises(JobStateConflict, match=state.value):
        queue.cancel(job.id)


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_a_failed_or_cancelled_job_is_retried_from_the_start(queue, catalogue, state):
    job = job_in(state, queue, catalogue)

    again = queue.retry(job.id)

    fresh = replace(job, state=JobState.QUEUED, attempt=0, failure=None, started_at=None, finished_at=None)
    assert again == replace(fresh, heartbeat_at=None, revision=queue.revision())
    assert queue.claim("worker").attempt == 1


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED])
def test_a_job_that_did_not_fail_cannot_be_retried(queue, catalogue, state):
    job = job_in(state, queue, catalogue)

    with pytest.raises(JobStateConflict, match=state.value):
        queue.retry(job.id)


def test_a_job_whose_model_was_deleted_cannot_be_retried(queue, catalogue):
    job = job_in(JobState.FAILED, queue, catalogue)
    catalogue.delete_model(job.model)

    with pytest.raises(ModelNotFound):
        queue.retry(job.id)


def test_jobs_are_listed_newest_first_by_state_name_and_page(queue, catalogue):
    a, b, c, d = (add_job(queue, catalogue, name) for name in ("x", "y", "x", "x"))
    queue.cancel(c.id)

    def ids(**how) -> list[str]:
        return [job.id for job in queue.list(**how)]

    assert ids() == [d.id, c.id, b.id, a.id]
    assert ids(limit=2) == [d.id, c.id]
    assert ids(after=c.id) == [b.id, a.id]
    assert ids(name="x") == [d.id, c.id, a.id]
    assert ids(state=JobState.QUEUED, name="x", after=d.id) == [a.id]
    assert ids(state=JobState.CANCELLED) == [c.id]
    with pytest.raises(InvalidRequest):
        ids(after="unknown")


def test_the_history_is_read_on_from_where_one_was(queue, catalogue):
    first, second = add_job(queue, catalogue), add_job(queue, catalogue)
    queue.cancel(first.id)

    history = queue.events()

    assert [line.job for line in history] == [first.id, second.id, first.id]
    assert queue.events(after_seq=history[0].seq) == history[1:]
    assert queue.events(first.id) == [history[0], history[2]]
    assert queue.events(first.id, history[0].seq) == [history[2]]
    assert queue.events(limit=1) == history[:1]


def test_jobs_are_counted_by_state(queue, catalogue):
    add_job(queue, catalogue)
    job_in(JobState.CANCELLED, queue, catalogue)

    assert queue.counts() == {**dict.fromkeys(JobState, 0), JobState.QUEUED: 1, JobState.CANCELLED: 1}


def test_the_revision_grows_with_every_change_and_is_the_changed_jobs_own(queue, catalogue):
    job = add_job(queue, catalogue)
    changes = (
        lambda: queue.claim("worker"),
        lambda: queue.advance(job.id, "worker", EventKind.STAGE, Stage.COMPILE, "compile"),
        lambda: queue.advance(job.id, "worker", EventKind.STEP, None, "step"),
        lambda: queue.cancel(job.id),
        lambda: queue.cancelled(job.id, "worker"),
        lambda: queue.retry(job.id),
    )

    for change in changes:
        before = queue.revision()
        change()
        assert queue.get(job.id).revision == queue.revision() > before
