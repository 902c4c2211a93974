"""Team: the replicas, as the service's own process sees them."""

from __future__ import annotations

import asyncio
import gc
import logging.config
import os
import signal
import socket
import time
import warnings
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from app import logs
from app.api.connection import Connection
from app.api.front import Front
from app.api.observed import RequestCounts
from app.backends import registry
from app.domain.builds import Digest
from app.domain.errors import BackendMissing
from app.replicas.channel import Channel, pair
from app.replicas.messages import Back, Drop, Forget, FromReplica, Load, Loaded, Stop, Take, Tally, ToReplica
from app.serving.service import InferenceService
from app.settings import Settings

log = logging.getLogger(__name__)

AUTO_MAX = 3  # replicas, where the owner names no number
BUSY_S = 1.0  # so long a connection that was offered counts as busy
PATIENCE_S = 5.0  # with a replica that is to do something


@dataclass(frozen=True)
class Forked:
    """A replica's process, and this end of what it is reached by."""

    pid: int
    end: socket.socket


def forked(settings: Settings, listener: socket.socket) -> list[Forked]:
    """Start the replicas. Before anything else is: a fork copies no threads, and no connection may be shared.

    Args:
        listener: not theirs; closed in each.
    """
    made: list[Forked] = []
    count = _count(settings)
    if count:
        with suppress(BackendMissing):
            registry.backend("onnxruntime")  # imports the runtime, whose pages are then shared
    gc.collect()
    gc.freeze()  # what was made so far stays: no collection looks at it again, or writes into pages that are shared
    for _ in range(count):
        mine, its = pair()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of libraries' threads, which rest at this time
            pid = os.fork()
        if pid == 0:
            for other in [listener, mine, *(one.end for one in made)]:
                other.close()
            _run(settings, its)
        its.close()
        made.append(Forked(pid, mine))
    return made


def _count(settings: Settings) -> int:
    """How many there are to be: none where a GPU computes, as a copy would take its memory once more; and none where
    requests are limited or logged one by one, which only one process can do."""
    is_alone = settings.key_requests_per_s or settings.address_requests_per_s or settings.log_requests
    if is_alone or settings.tls_cert or settings.trusted_proxies:
        return 0
    if settings.replicas is not None:
        return settings.replicas
    return 0 if find_spec("tensorrt") else min(AUTO_MAX, len(os.sched_getaffinity(0)) - 1)


def _run(settings: Settings, end: socket.socket) -> None:
    """Be a replica; never returns."""
    status = 1
    try:
        logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
        from app.replicas.process import run

        run(settings, end)
        status = 0
    except BaseException:
        log.exception("a replica failed")
    finally:
        os._exit(status)  # what else the service's process would do at its end is not this one's business


class _Member:
    """One replica: what it has, and what it was asked for."""

    def __init__(
        self, made: Forked, got: Callable[[_Member, FromReplica, list[int]], None], lost: Callable[[_Member], None]
    ) -> None:
        self.pid = made.pid
        self.channel = Channel(made.end, partial(got, self), partial(lost, self))
        self.connections = 0
        self.copies: dict[str, Digest] = {}  # by reference, as clients write it
        self.copy_bytes: dict[Digest, int] = {}
        self.asked: dict[str, Digest] = {}  # to load, and not loaded yet or in vain
        self.dropping: dict[Digest, asyncio.Future[None]] = {}
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_alive(self) -> bool:
        return not self.gone.done()

    def send(self, message: ToReplica, descriptor: int | None = None) -> None:
        self.channel.send(message, [descriptor] if descriptor is not None else [])

    def forget(self, blob: Digest) -> None:
        """No connection goes there for this engine."""
        self.copies = {ref: of for ref, of in self.copies.items() if of != blob}

    def end(self) -> None:
        """Have no process, whatever it does."""
        if self.is_alive:
            self.gone.set_result(None)
            self.channel.close()
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class Team:
    """Gives busy connections away, takes them back, and has copies loaded and dropped. Used on the event loop."""

    def __init__(self, made: list[Forked], inference: InferenceService, counts: RequestCounts) -> None:
        """
        Args:
            counts: of answered requests; the replicas' are added.
        """
        self._made = made
        self._inference = inference
        self._counts = counts
        self._front: Front
        self._members: list[_Member] = []
        self._busy: dict[Connection, float] = {}  # here, with the time of their last offer
        self._is_stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, front: Front) -> None:
        """Listen to the replicas; connections that come back go to this front."""
        self._front = front
        self._members = [_Member(one, self._got, self._lost) for one in self._made]
        self._counts.replicas = len(self._members)
        if self._members:
            self._inference.pool.give_up_copies = self._drop
            self._inference.told_to_forget.append(self._forget)

    async def stop(self) -> None:
        """Let them end what is under way, and end them."""
        self._is_stopping = True
        for member in self._members:
            member.send(Stop())
        if self._members:
            await asyncio.wait([member.gone for member in self._members], timeout=PATIENCE_S)
        for member in self._members:
            self._bury(member)

    @property
    def connections(self) -> int:
        return self._counts.replica_connections

    def want(self, connection: Connection, ref: str) -> bool:
        now_s = time.monotonic()
        self._busy[connection] = now_s
        self._busy = {
            one: at_s for one, at_s in self._busy.items() if now_s - at_s < BUSY_S and not one.transport.is_closing()
        }
        return self._relief(ref) is not None

    def take(self, connection: Connection, ref: str) -> bool:
        member = self._relief(ref)
        if member is None:
            return False
        self._busy.pop(connection, None)
        self._move(member, 1)
        member.send(Take(), connection.part())
        return True

    def _relief(self, ref: str) -> _Member | None:
        """The replica with the fewest connections, if it has fewer than are busy here, and the engine."""
        member = min((one for one in self._members if one.is_alive), key=lambda one: one.connections, default=None)
        is_relief = member is not None and member.connections < len(self._busy) - 1 and self._has_copy(member, ref)
        return member if is_relief else None

    # --- copies -----------------------------------------------------------------------------------------------------

    def _has_copy(self, member: _Member, ref: str) -> bool:
        """Whether the replica has the engine; if not, and it is worth it, it is told to load it."""
        record = self._inference.known(ref)
        seat = self._inference.pool.short(record) if record is not None else None
        if record is None or seat is None:
            return False
        if member.copies.get(ref) == record.blob:
            return True
        is_asked = member.asked.get(ref) == record.blob
        if not is_asked and self._inference.pool.has_room_for(self._inference.estimate_bytes(record)):
            member.asked[ref] = record.blob
            member.send(Load(ref))
        return False

    async def _drop(self, blob: Digest) -> None:
        """Have every replica give its copy up, and wait for it."""
        holders = [member for member in self._members if member.is_alive and blob in member.copy_bytes]
        for member in holders:
            member.forget(blob)
            if blob not in member.dropping:
                member.dropping[blob] = asyncio.get_running_loop().create_future()
                member.send(Drop(blob))
        if holders:
            await asyncio.wait([member.dropping[blob] for member in holders], timeout=PATIENCE_S)
        for member in holders:
            if blob in member.dropping:  # it would keep the memory
                log.error("a replica does not answer and is ended", extra={"pid": member.pid})
                self._bury(member)

    def _forget(self, name: str) -> None:
        for member in self._members:
            member.send(Forget(name))

    # --- what the replicas tell -------------------------------------------------------------------------------------

    def _got(self, member: _Member, message: FromReplica, files: list[int]) -> None:
        if isinstance(message, Tally):
            self._count(member, message)
        elif isinstance(message, Back):
            self._take_back(member, message, files[0])
        elif isinstance(message, Loaded):
            self._loaded(member, message)
        else:
            self._dropped(member, message.blob)

    def _count(self, member: _Member, tally: Tally) -> None:
        self._move(member, -tally.closed)
        self._inference.statistics.merge(tally.engines)
        for blob, (requests, rows, runs) in tally.used.items():
            self._inference.pool.used_elsewhere(blob, requests, rows, runs)
        self._counts.merge(tally.requests)

    def _take_back(self, member: _Member, back: Back, descriptor: int) -> None:
        self._move(member, -1)
        if back.ref is not None:
            member.copies.pop(back.ref, None)  # another engine goes by that name now: it is loaded when asked for
        accepted = socket.socket(fileno=descriptor)
        self._spawn(self._adopted(accepted, back))

    async def _adopted(self, accepted: socket.socket, back: Back) -> None:
        try:
            await self._front.adopt(accepted, back.data, stays=back.stays)
        except OSError:  # its client is gone already
            accepted.close()

    def _loaded(self, member: _Member, loaded: Loaded) -> None:
        if loaded.blob is None:
            return  # and is not asked again: it stays among those that were
        member.asked.pop(loaded.ref, None)
        is_new = loaded.blob not in member.copy_bytes
        if is_new:
            member.copy_bytes[loaded.blob] = loaded.copy_bytes
        if self._inference.pool.copied(loaded.blob, loaded.copy_bytes if is_new else 0):
            member.copies[loaded.ref] = loaded.blob
        else:
            self._spawn(self._drop(loaded.blob))  # it has been unloaded meanwhile

    def _dropped(self, member: _Member, blob: Digest) -> None:
        self._inference.pool.copied(blob, -member.copy_bytes.pop(blob, 0))
        if done := member.dropping.pop(blob, None):
            done.set_result(None)

    def _lost(self, member: _Member) -> None:
        """A replica has ended; its connections are lost, the others go on."""
        if not self._is_stopping:
            log.error("a replica has ended, its connections are lost", extra={"pid": member.pid})
        self._bury(member)

    def _bury(self, member: _Member) -> None:
        member.end()
        self._counts.replicas = sum(one.is_alive for one in self._members)
        self._move(member, -member.connections)
        member.copies.clear()
        for blob in [*member.copy_bytes]:
            self._dropped(member, blob)

    def _move(self, member: _Member, more: int) -> None:
        member.connections += more
        self._counts.replica_connections += more

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
