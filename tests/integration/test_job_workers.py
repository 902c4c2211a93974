from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from storage_fixtures import (
    FAILURE,
    NOON,
    WORKER_CALLS,
    add_job,
    child,
    in_threads,
    job_in,
    publication,
    source_model,
)

from app.domain.builds import BuildOptions
from app.domain.errors import (
    EngineNotFound,
)
from app.domain.jobs import EventKind, JobState, Stage
from app.storage.admission import admit
from app.storage.jobs import JobLost


def alive(worker: str) -> bool:
    return True


def gone(worker: str) -> bool:
    return False


def test_jobs_are_claimed_in_the_order_they_came(queue, catalogue):
    first, second = add_job(queue, catalogue), add_job(queue, catalogue)

    claimed = queue.claim("worker")

    assert claimed.id == first.id
    assert (claimed.state, claimed.attempt, claimed.worker) == (JobState.RUNNING, 1, "worker")
    assert claimed.started_at is not None
    assert queue.claim("other").id == second.id
    assert queue.claim("worker") is None


def test_looking_for_work_in_vain_changes_nothing(queue):
    revision = queue.revision()

    assert queue.claim("worker") is None

    assert queue.revision() == revision


def test_every_job_is_claimed_exactly_once(database, queue, catalogue):
    model = catalogue.add_model(source_model()).digest
    with database.writer() as connection:
        added = {admit(connection, "digits", model, None, BuildOptions(), None, NOON).id for _ in range(200)}
    code = """
import sys
from app.storage.database import Database
from app.storage.jobs import JobQueue
queue = JobQueue(Database(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
while job := queue.claim(sys.argv[2]):
    print(job.id, flush=True)
"""
    processes = [child(code, str(database.db.url), f"process {number}") for number in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    claimed: list[str] = []

    def claim_all() -> None:
        while job := queue.claim(threading.current_thread().name):
            claimed.append(job.id)

    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    in_threads(8, claim_all)
    for process in processes:
        claimed += process.communicate(timeout=60)[0].split()

    assert len(claimed) == 200
    assert set(claimed) == added


def test_a_heartbeat_is_no_change_that_a_client_sees(timed, catalogue, clocks):
    job = job_in(JobState.RUNNING, timed, catalogue)
    revision = timed.revision()
    clocks.pass_s(5)

    assert timed.beat(job.id, "worker") is False

    assert timed.get(job.id) == replace(job, heartbeat_at=clocks.wall)
    assert timed.revision() == revision


def test_a_build_tells_its_stages_and_steps(queue, catalogue):
    job = job_in(JobState.RUNNING, queue, catalogue)

    queue.advance(job.id, "worker", EventKind.STAGE, Stage.COMPILE, "compile")
    told = queue.advance(job.id, "worker", EventKind.WARNING, None, "the batch is fixed")

    assert (told.stage, told.revision) == (Stage.COMPILE, queue.revision())
    lines = [(line.kind, line.stage, line.message) for line in queue.events(job.id)]
    assert lines == [
        (EventKind.STATE, None, "Queued."),
        (EventKind.STATE, None, "Running, attempt 1."),
        (EventKind.STAGE, Stage.COMPILE, "compile"),
        (EventKind.WARNING, Stage.COMPILE, "the batch is fixed"),
    ]


def test_a_build_that_succeeds_publishes_its_engine(queue, catalogue):
    job = job_in(JobState.RUNNING, queue, catalogue)

    engine = queue.succeed(job.id, "worker", publication())

    done = queue.get(job.id)
    assert (done.state, done.engine, done.reused, done.worker) == (JobState.SUCCEEDED, "digits:1", False, None)
    assert done.finished_at is not None
    assert catalogue.engine("digits") == engine


def test_a_claimed_job_can_end_with_an_engine_that_exists(queue, catalogue):
    job_in(JobState.SUCCEEDED, queue, catalogue)
    job = job_in(JobState.RUNNING, queue, catalogue)

    queue.succeed(job.id, "worker", publication(), reused=True)

    assert (queue.get(job.id).engine, queue.get(job.id).reused) == ("digits:1", True)


def test_an_engine_that_was_deleted_is_not_reused(queue, catalogue):
    job = job_in(JobState.RUNNING, queue, catalogue)

    with pytest.raises(EngineNotFound):
        queue.succeed(job.id, "worker", publication(), reused=True)

    assert queue.get(job.id).state is JobState.RUNNING
    assert catalogue.engines() == []


def test_a_build_that_fails_says_why(queue, catalogue):
    job = job_in(JobState.RUNNING, queue, catalogue)
    queue.advance(job.id, "worker", EventKind.STAGE, Stage.COMPILE, "compile")

    queue.fail(job.id, "worker", FAILURE)

    failed = queue.get(job.id)
    assert (failed.state, failed.failure, failed.stage) == (JobState.FAILED, FAILURE, Stage.COMPILE)
    assert queue.events(job.id)[-1].message == "It failed."


def test_a_released_job_waits_again_and_the_attempt_does_not_count(queue, catalogue):
    job = job_in(JobState.RUNNING, queue, catalogue)

    released = queue.release(job.id, "worker")

    assert (released.state, released.attempt, released.worker) == (JobState.QUEUED, 0, None)
    assert queue.claim("other").attempt == 1


def test_a_released_job_that_was_to_be_cancelled_is(queue, catalogue):
    job = job_in(JobState.RUNNING, queue, catalogue)
    queue.cancel(job.id)

    assert queue.release(job.id, "worker").state is JobState.CANCELLED


@pytest.mark.parametrize("call", WORKER_CALLS)
def test_a_worker_that_lost_its_job_can_do_nothing_to_it(queue, catalogue, call):
    job = job_in(JobState.RUNNING, queue, catalogue)
    queue.requeue_lost(60, 3, gone)
    queue.claim("successor")
    before, history = queue.get(job.id), queue.events()

    with pytest.raises(JobLost):
        WORKER_CALLS[call](queue, job.id, "worker")
    with pytest.raises(JobLost):
        WORKER_CALLS[call](queue, "0" * 16, "worker")

    assert (queue.get(job.id), queue.events()) == (before, history)
    assert catalogue.engines() == []


def test_a_job_whose_worker_is_gone_waits_again_at_once(queue, catalogue):
    job = job_in(JobState.RUNNING, queue, catalogue)
    asked = []

    requeued = queue.requeue_lost(60, 3, lambda worker: asked.append(worker) is not None)

    assert asked == ["worker"]
    assert [lost.id for lost in requeued] == [job.id]
    assert (requeued[0].state, requeued[0].attempt, requeued[0].worker) == (JobState.QUEUED, 1, None)
    assert queue.claim("successor").attempt == 2


def test_a_job_that_is_beaten_for_is_left_alone(timed, catalogue, clocks):
    job = job_in(JobState.RUNNING, timed, catalogue)
    for _ in range(10):
        assert timed.requeue_lost(60, 3, alive) == []
        clocks.pass_s(50)
        timed.beat(job.id, "worker")

    assert timed.get(job.id).state is JobState.RUNNING


def test_a_job_whose_worker_lives_but_no_longer_beats_waits_again(timed, catalogue, clocks):
    job_in(JobState.RUNNING, timed, catalogue)
    assert timed.requeue_lost(60, 3, alive) == []
    clocks.pass_s(59)
    assert timed.requeue_lost(60, 3, alive) == []
    clocks.pass_s(1)

    assert [job.state for job in timed.requeue_lost(60, 3, alive)] == [JobState.QUEUED]


@pytest.mark.parametrize("jump", [timedelta(days=-365), timedelta(days=365)])
def test_a_jump_of_the_wall_clock_neither_loses_a_job_nor_hides_a_lost_one(timed, catalogue, clocks, jump):
    job = job_in(JobState.RUNNING, timed, catalogue)
    timed.requeue_lost(60, 3, alive)

    clocks.wall += jump
    assert timed.requeue_lost(60, 3, alive) == []
    clocks.pass_s(50)
    timed.beat(job.id, "worker")
    assert timed.requeue_lost(60, 3, alive) == []
    clocks.pass_s(60)

    assert [job.state for job in timed.requeue_lost(60, 3, alive)] == [JobState.QUEUED]


def test_a_job_that_loses_every_worker_fails_with_a_reason(queue, catalogue):
    job = add_job(queue, catalogue)
    for _ in range(3):
        queue.claim("worker")
        moved = queue.requeue_lost(60, 3, gone)

    assert [lost.state for lost in moved] == [JobState.FAILED]
    failure = queue.get(job.id).failure
    assert failure.code == "worker_lost"
    assert "3 times" in failure.message and failure.hint


def test_a_lost_job_that_was_to_be_cancelled_is(queue, catalogue):
    job = job_in(JobState.RUNNING, queue, catalogue)
    queue.cancel(job.id)

    assert [lost.state for lost in queue.requeue_lost(60, 1, gone)] == [JobState.CANCELLED]


def test_a_job_that_ended_while_it_was_looked_at_keeps_its_end(queue, catalogue):
    job = job_in(JobState.RUNNING, queue, catalogue)

    def gone_after_its_last_word(worker: str) -> bool:
        queue.succeed(job.id, worker, publication())
        return False

    assert queue.requeue_lost(60, 3, gone_after_its_last_word) == []
    assert queue.get(job.id).state is JobState.SUCCEEDED


def test_a_job_that_another_worker_has_by_now_stays_with_it(queue, catalogue):
    job = job_in(JobState.RUNNING, queue, catalogue)

    def gone_after_giving_it_back(worker: str) -> bool:
        queue.release(job.id, worker)
        queue.claim("successor")
        return False

    assert queue.requeue_lost(60, 3, gone_after_giving_it_back) == []
    assert queue.get(job.id).worker == "successor"
