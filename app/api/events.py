"""Waiting for change: long polls and server-sent events share one look at the database."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from app.api.estimates import estimator
from app.api.responses import json_bytes
from app.api.schemas import EventSchema, JobSchema
from app.api.services import Services
from app.domain.jobs import Job

LOOK_S = 0.2  # between two looks at the revision, while anybody waits
LOG_S = 0.3  # between two looks at a log file
PING_S = 15.0  # a comment line keeps proxies from closing a silent stream
LOG_PIECE_BYTES = 1 << 16
EVENTS_A_LOOK = 500
_RETRY_MS = 2000  # how long an EventSource waits before it connects again


class Changes:
    """Tells waiters that some job or engine has changed. One task looks, however many wait."""

    def __init__(self, revision: Callable[[], int]) -> None:
        self._revision = revision
        self._seen = -1
        self._changed = asyncio.Event()
        self._waiters = 0
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    async def until(
        self, wait_s: float, gone: Callable[[], Awaitable[bool]] | None = None
    ) -> AsyncGenerator[None, None]:
        """Yield once at the start (when wait_s > 0) and after each change, until time or client are gone."""
        end = time.monotonic() + wait_s
        self._waiters += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        try:
            while (left_s := end - time.monotonic()) > 0 and not self._closed:
                changed = self._changed  # taken before the caller looks: a change while it looks is not missed
                yield
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(changed.wait(), min(left_s, 1.0))
                if gone is not None and await gone():
                    return
        finally:
            self._waiters -= 1

    async def pause(self, most_s: float) -> None:
        """Wait so long, or less when the service stops."""
        async for _ in self.until(most_s):
            pass

    async def _look(self) -> None:
        while self._waiters and not self._closed:
            with contextlib.suppress(Exception):  # a busy database: look again next time
                now = await run_in_threadpool(self._revision)
                if now != self._seen:
                    self._seen = now
                    self._wake()
            await asyncio.sleep(LOOK_S)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """End every wait now, so that the server can stop."""
        self._closed = True
        self._wake()


async def job_stream(wired: Services, changes: Changes, job_id: str, after: int) -> AsyncIterator[bytes]:
    """The job's history after event `after`, then what happens, as server-sent events, until the job ends.

    Log lines carry no id: a client that reconnects with Last-Event-ID gets the log from its start again.
    """
    news = _News(wired, job_id, after)
    sent_at = time.monotonic()
    yield f"retry: {_RETRY_MS}\n\n".encode()
    while not changes.closed:
        job = await run_in_threadpool(wired.queue.get, job_id)  # before the news: of an ended job they are complete
        chunk = await run_in_threadpool(news.next, job)
        if job.state.is_final and not chunk:
            yield server_sent_event("end", json_bytes(JobSchema.from_domain(job)))
            return
        if not chunk and time.monotonic() - sent_at > PING_S:
            chunk = b": still here\n\n"
        if chunk:
            sent_at = time.monotonic()
            yield chunk
        else:
            await changes.pause(LOG_S)


class _News:
    """What has come since the last look: events of the job's history, then lines of its log."""

    def __init__(self, wired: Services, job_id: str, after: int) -> None:
        self._queue = wired.queue
        self._estimated_s = estimator(wired)  # looks it up once
        self._job_id = job_id
        self._after = after
        self._log = _LogTail(wired.settings.job_log(job_id))

    def next(self, job: Job) -> bytes:
        """
        Args:
            job: as it was just now.
        """
        chunk = b""
        for event in self._queue.events(self._job_id, self._after, EVENTS_A_LOOK):
            self._after = event.seq
            told = EventSchema.from_domain(event, job.started_at, self._estimated_s(job))
            chunk += server_sent_event(event.kind.value, json_bytes(told), event.seq)
        for line in self._log.lines():
            chunk += server_sent_event("log", json_bytes({"line": line}))
        return chunk


def server_sent_event(kind: str, data: bytes, seq: int | None = None) -> bytes:
    """One event of a text/event-stream; `seq` is what a reader that reconnects sends as Last-Event-ID."""
    head = f"id: {seq}\nevent: {kind}\n" if seq is not None else f"event: {kind}\n"
    return head.encode() + b"data: " + data + b"\n\n"


class _LogTail:
    """Whole lines of a growing file, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._rest = b""

    def lines(self) -> list[str]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                piece = file.read(LOG_PIECE_BYTES)
        except FileNotFoundError:
            return []
        self._position += len(piece)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]
