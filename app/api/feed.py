"""GET /events: what happens to all jobs and engines, as server-sent events, for any number of readers up to a bound."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from app.api.events import PING_S, Changes, server_sent_event
from app.api.responses import json_bytes
from app.domain.errors import ServiceError, StreamsFull
from app.domain.jobs import JobState
from app.serving.pool_events import PoolEvent, PoolEvents
from app.serving.seats import WarmState
from app.storage.feed import FeedLine, JobFeed

router = APIRouter(tags=["jobs"])

HISTORY_MAX = 1000  # lines that a reader who was away is told; one who missed more has to look for itself
BACKLOG_MAX = 1000  # events that wait for a slow reader; then its stream ends, and it may come back
_LINES_A_LOOK = 500
_EVENT_ID = re.compile(r"[0-9]{1,18}")

Piece = tuple[int, bytes]  # number of the line in the history (0: none), what is sent


@router.get("/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
async def get_all_events(request: Request, last_event_id: Annotated[str | None, Header()] = None) -> StreamingResponse:
    """Server-sent events of all jobs and engines: `sync` first, then `job` and `engine` as they happen.

    With `Last-Event-ID` the jobs' history goes on after it. `sync` says whether it does (`resumed`); where it does not,
    read GET /jobs and GET /engines for what was before.
    """
    feed: Feed = request.app.state.feed
    after = int(last_event_id) if last_event_id and _EVENT_ID.fullmatch(last_event_id) else None
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(feed.joined(after), media_type="text/event-stream", headers=headers)


class Feed:
    """One look at the database for all readers. Used on the event loop only."""

    def __init__(
        self,
        history: JobFeed,
        changes: Changes,
        events: PoolEvents,
        states: Callable[[], Sequence[WarmState]],
        *,
        streams_max: int,
        history_max: int = HISTORY_MAX,
    ) -> None:
        self._history = history
        self._changes = changes
        self._states = states
        self._streams_max = streams_max
        self._history_max = history_max
        self._readers: set[asyncio.Queue[Piece | None]] = set()
        self._looking: asyncio.Task[None] | None = None
        events.listeners.append(self._engine_changed)

    @property
    def streams(self) -> int:
        return len(self._readers)

    def joined(self, after: int | None) -> AsyncIterator[bytes]:
        """The stream of a new reader.

        Args:
            after: number of the last line that it has seen; None: it is new.

        Raises:
            StreamsFull: as many are open as may be.
        """
        if len(self._readers) >= self._streams_max:
            raise StreamsFull(
                f"{self._streams_max} event streams are open, and no more may be.",
                hint="Poll GET /status with If-None-Match, or raise event_streams_max.",
            )
        return self._stream(after)

    async def _stream(self, after: int | None) -> AsyncIterator[bytes]:
        # Here and not in `joined`: a stream that is never begun is never ended either, and would keep its place.
        reader: asyncio.Queue[Piece | None] = asyncio.Queue(BACKLOG_MAX)
        self._readers.add(reader)  # before the history is read: what comes meanwhile is in both, and told once
        try:
            seq, pieces = await self._beginning(after)
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look(seq))
            for piece in pieces:
                yield piece
            while not self._changes.closed:
                try:
                    next_piece = await asyncio.wait_for(reader.get(), PING_S)
                except asyncio.TimeoutError:
                    yield b": still here\n\n"
                    continue
                if next_piece is None:
                    return
                if next_piece[0] == 0 or next_piece[0] > seq:
                    yield next_piece[1]
        finally:
            self._readers.discard(reader)

    async def _beginning(self, after: int | None) -> tuple[int, list[bytes]]:
        """Up to which line the reader is told at once, and what."""
        last = await run_in_threadpool(self._history.last_seq)
        if after is None or after > last:
            return last, [self._sync(last, "new" if after is None else "unknown")]
        lines = await run_in_threadpool(self._history.after, after, self._history_max + 1)
        if len(lines) > self._history_max:
            return last, [self._sync(last, "too_old")]
        seq = lines[-1].event.seq if lines else after
        return seq, [self._sync(None, "resumed"), *(_told(line) for line in lines)]

    def _sync(self, seq: int | None, reason: str) -> bytes:
        engines = {ref: state.state.value for state in self._states() for ref in state.refs}
        body = {"resumed": reason == "resumed", "reason": reason, "engines": engines}
        return b"retry: 2000\n\n" + server_sent_event("sync", json_bytes(body), seq)

    async def _look(self, seq: int) -> None:
        """Tell all readers what comes after the line `seq`, for as long as there are any."""
        while self._readers and not self._changes.closed:
            async with aclosing(self._changes.until(PING_S)) as wakings:
                async for _ in wakings:
                    with suppress(ServiceError):  # a busy database: the next look gets it all
                        seq = await self._told_after(seq)
                    if not self._readers:
                        break
        self._end()

    async def _told_after(self, seq: int) -> int:
        while lines := await run_in_threadpool(self._history.after, seq, _LINES_A_LOOK):
            for line in lines:
                self._send((line.event.seq, _told(line)))
            seq = lines[-1].event.seq
        return seq

    def _engine_changed(self, event: PoolEvent) -> None:
        if self._readers:
            self._send((0, server_sent_event("engine", json_bytes(vars(event)))))

    def _send(self, piece: Piece) -> None:
        for reader in list(self._readers):
            try:
                reader.put_nowait(piece)
            except asyncio.QueueFull:
                self._readers.discard(reader)
                reader.get_nowait()
                reader.put_nowait(None)

    def _end(self) -> None:
        for reader in self._readers:
            with suppress(asyncio.QueueFull):
                reader.put_nowait(None)


def _told(line: FeedLine) -> bytes:
    """The line as an event; behind it, without a number of its own, the engine that it published."""
    event = line.event
    engine = line.engine if event.state is JobState.SUCCEEDED else None
    body = {
        "seq": event.seq,
        "job": event.job,
        "name": line.name,
        "at": event.at,
        "kind": event.kind.value,
        "state": event.state.value if event.state else None,
        "stage": event.stage.value if event.stage else None,
        "message": event.message,
        "engine": engine,
    }
    told = server_sent_event("job", json_bytes(body), event.seq)
    if engine is not None:
        told += server_sent_event("engine", json_bytes({"action": "published", "engine": engine, "seconds": None}))
    return told
