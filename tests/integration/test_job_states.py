from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert
from storage_fixtures import (
    NOON,
    WORKER_CALLS,
    add_job,
    job_in,
    publication,
)

from app.domain.errors import (
    JobStateConflict,
    ServiceError,
)
from app.domain.jobs import FOLLOWS, EventKind, JobState
from app.storage.catalogue import Catalogue
from app.storage.database import Database, migrate
from app.storage.history import move
from app.storage.jobs import JobLost, JobQueue
from app.storage.tables import jobs


def alive(worker: str) -> bool:
    return True


def gone(worker: str) -> bool:
    return False


@pytest.mark.parametrize("following", list(JobState))
@pytest.mark.parametrize("state", list(JobState))
def test_a_job_moves_only_as_the_states_allow_and_each_move_is_in_its_history(
    database, queue, catalogue, state, following
):
    job = job_in(state, queue, catalogue)
    history = queue.events(job.id)

    try:
        with database.writer() as connection:
            moved = move(connection, job, following, NOON, "moved by the test")
    except JobStateConflict:
        assert following not in FOLLOWS[state]
        assert (queue.get(job.id), queue.events(job.id)) == (job, history)
    else:
        assert following in FOLLOWS[state]
        assert moved.state is following
        assert [line.message for line in queue.events(job.id)[len(history) :]] == ["moved by the test"]


OPERATIONS: dict[str, Callable[[JobQueue, str], object]] = {
    **{name: lambda queue, job, call=call: call(queue, job, "worker") for name, call in WORKER_CALLS.items()},
    "claim": lambda queue, job: queue.claim("worker"),
    "reuse": lambda queue, job: queue.succeed(job, "worker", publication(), reused=True),
    "add finished": lambda queue, job: queue.add_finished(publication()),
    "requeue": lambda queue, job: queue.requeue_lost(60, 2, gone),
    "cancel": lambda queue, job: queue.cancel(job),
    "retry": lambda queue, job: queue.retry(job),
}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 1)), max_size=20))
def test_whatever_is_asked_of_the_queue_jobs_move_only_as_the_states_allow(operations):
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/jetforge.db"
        migrate(url, Path(folder) / "lock")
        database = Database(url)
        queue = JobQueue(database)
        ids = [add_job(queue, Catalogue(database)).id for _ in range(2)]
        for operation, number in operations:
            before, told = {job: queue.get(job).state for job in ids}, len(state_lines(queue, ids))
            try:
                OPERATIONS[operation](queue, ids[number])
            except (JobLost, ServiceError):
                assert {job: queue.get(job).state for job in ids} == before
            moves = [(before[job], queue.get(job).state) for job in ids if before[job] is not queue.get(job).state]
            assert all(following in FOLLOWS[state] for state, following in moves)
            assert len(state_lines(queue, ids)) == told + len(moves)
        database.close()


def state_lines(queue: JobQueue, ids: list[str]) -> list[str]:
    return [line.message for line in queue.events() if line.kind is EventKind.STATE and line.job in ids]


def test_no_call_that_clients_poll_reads_a_long_table_through(database, queue, catalogue):
    fill(database, queue, catalogue, rows=20_000)
    job = queue.list(limit=1)[0]
    queue.succeed(queue.claim("worker").id, "worker", publication())
    calls: dict[str, Callable[[], object]] = {
        "newest": lambda: queue.list(),
        "of a state": lambda: queue.list(state=JobState.QUEUED, after=job.id),
        "of a name": lambda: queue.list(name="digits", after=job.id),
        "of both": lambda: queue.list(state=JobState.FAILED, name="digits", after=job.id),
        "one": lambda: queue.get(job.id),
        "history": lambda: queue.events(job.id, 0),
        "claim": lambda: queue.claim("worker"),
        "beat": lambda: queue.beat(queue.list(state=JobState.RUNNING)[0].id, "worker"),
        "lost": lambda: queue.requeue_lost(60, 3, alive),
        "revision": lambda: queue.revision(),
        "engines": lambda: catalogue.engines(),
        "engines of a name": lambda: catalogue.engines("digits"),
        "engine": lambda: catalogue.engine("digits"),
        "key": lambda: catalogue.engine_by_key("key"),
    }

    for name, call in calls.items():
        for step in plan_of(database, call):
            assert "TEMP B-TREE" not in step, (name, step)
            # The table itself, backwards, until the page is full:
            assert "SCAN" not in step or name in ("newest", "engines"), (name, step)


def fill(database: Database, queue: JobQueue, catalogue: Catalogue, rows: int) -> None:
    job = add_job(queue, catalogue)
    columns = {name: value for name, value in vars(job).items() if name != "id"}
    with database.writer() as connection:
        connection.execute(insert(jobs), [{**columns, "id": f"{number:016x}"} for number in range(rows)])


def plan_of(database: Database, call: Callable[[], object]) -> list[str]:
    """What SQLite says that it does for each statement of the call."""
    statements: list[tuple[str, tuple[object, ...]]] = []

    def note(connection, cursor, statement, parameters, context, executemany) -> None:
        statements.append((statement, parameters))

    event.listen(database.db, "before_cursor_execute", note)
    call()
    event.remove(database.db, "before_cursor_execute", note)
    with database.reader() as connection:
        return [
            str(step[3])
            for statement, parameters in statements
            if statement.startswith(("SELECT", "UPDATE", "DELETE"))
            for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
