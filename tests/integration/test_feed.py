"""The stream of all jobs and engines: resumed, synchronised anew, bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from storage_fixtures import FAILURE, add_job, publication

from app.api.events import Changes
from app.api.feed import BACKLOG_MAX, Feed
from app.domain.errors import StreamsFull
from app.serving.pool_events import PoolEvents
from app.sse import server_sent
from app.storage.feed import JobFeed
from tests.fakes import engine_record, soon

Told = tuple[str, dict[str, object]]


@pytest.fixture
def events() -> PoolEvents:
    return PoolEvents()


@pytest.fixture
def feed(database, queue, events) -> Feed:
    changes = Changes(queue.revision)
    yield Feed(JobFeed(database), changes, events, list, streams_max=2, history_max=6)
    changes.close()


async def take(stream: AsyncIterator[bytes], count: int) -> list[Told]:
    """So many events of the stream."""
    found: list[Told] = []
    while len(found) < count:
        chunk = await soon(stream.__anext__())
        found += [(kind, json.loads(data)) for kind, data in server_sent([chunk])]
    return found


def last_id(database) -> int:
    return JobFeed(database).last_seq()


async def test_a_new_reader_is_told_what_happens_from_now_on(feed, queue, catalogue):
    add_job(queue, catalogue, "earlier")
    stream = feed.joined(None)
    ((kind, sync),) = await take(stream, 1)
    assert (kind, sync["resumed"], sync["reason"]) == ("sync", False, "new")

    job = add_job(queue, catalogue, "later")
    queue.claim("worker")  # the earlier one
    told = await take(stream, 2)

    assert [(kind, data["name"], data["state"]) for kind, data in told] == [
        ("job", "later", "queued"),
        ("job", "earlier", "running"),
    ]
    assert told[0][1]["job"] == job.id
    await stream.aclose()


async def test_a_reader_that_comes_back_is_told_what_it_missed_and_then_what_follows(feed, queue, catalogue, database):
    add_job(queue, catalogue)
    seen = last_id(database)
    job = queue.claim("worker")
    queue.succeed(job.id, "worker", publication())

    stream = feed.joined(seen)
    (_, sync), *missed = await take(stream, 4)
    queue.claim("worker")
    add_job(queue, catalogue, "next")
    following = await take(stream, 1)

    assert sync["resumed"] is True
    assert [data.get("state", data.get("action")) for _, data in missed] == ["running", "succeeded", "published"]
    assert missed[1][1]["engine"] == missed[2][1]["engine"] == "digits:1"
    assert following[0][1]["name"] == "next"
    await stream.aclose()


@pytest.mark.parametrize(("ahead", "reason"), [(-100, "too_old"), (5, "unknown")])
async def test_a_reader_that_cannot_be_resumed_is_told_to_look_for_itself(
    feed, queue, catalogue, database, ahead, reason
):
    for number in range(4):
        add_job(queue, catalogue, f"n{number}")
        queue.fail(queue.claim("worker").id, "worker", FAILURE)
    stream = feed.joined(max(0, last_id(database) + ahead))

    ((kind, sync),) = await take(stream, 1)

    assert (kind, sync["resumed"], sync["reason"]) == ("sync", False, reason)
    await stream.aclose()


async def test_engines_that_come_and_go_are_told_to_all(feed, events):
    streams = [feed.joined(None), feed.joined(None)]
    for stream in streams:
        await take(stream, 1)

    events.loaded(engine_record(), 0.25)

    for stream in streams:
        ((kind, data),) = await take(stream, 1)
        assert (kind, data["action"], data["seconds"]) == ("engine", "loaded", 0.25)
        await stream.aclose()
    assert feed.streams == 0


async def test_no_more_readers_than_may_be(feed):
    streams = [feed.joined(None), feed.joined(None)]
    for stream in streams:
        await take(stream, 1)
    with pytest.raises(StreamsFull):
        feed.joined(None)

    for stream in streams:
        await stream.aclose()
    again = feed.joined(None)
    await take(again, 1)
    await again.aclose()


async def test_a_reader_that_does_not_read_is_let_go(feed, events):
    slow, quick = feed.joined(None), feed.joined(None)
    await take(slow, 1)
    await take(quick, 1)

    for _ in range(BACKLOG_MAX + 1):
        events.loading(engine_record())
        await take(quick, 1)

    assert feed.streams == 1
    assert len([piece async for piece in slow]) == BACKLOG_MAX - 1
    await quick.aclose()
    await asyncio.sleep(0)


async def test_what_comes_while_a_reader_is_told_its_history_is_told_once(feed, queue, catalogue, database):
    first = feed.joined(None)
    await take(first, 1)
    seen = last_id(database)
    add_job(queue, catalogue, "one")  # in the history of the second, and about to be told to all

    second = feed.joined(seen)
    told = await take(second, 2)
    await take(first, 1)
    add_job(queue, catalogue, "two")
    told += await take(second, 1)

    assert [data["name"] for kind, data in told if kind == "job"] == ["one", "two"]
    for stream in (first, second):
        await stream.aclose()
