"""Nursery: a process that only forks replicas, at the start and again when one has died.

The service's own process cannot do that once it serves: a fork copies no threads but what they hold, and would share
the open database. So it forks this one before it has any of them, with the runtime imported.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec

from app.backends import registry
from app.backoff import Backoff
from app.domain.errors import BackendMissing
from app.replicas.channel import Channel, pair
from app.replicas.messages import Born, End, Fork
from app.settings import Settings

log = logging.getLogger(__name__)

AUTO_MAX = 3  # replicas, where the owner names no number


class Nursery:
    """The nursery, as the service's own process sees it. Used on the event loop, once it is started."""

    def __init__(self, pid: int, end: socket.socket, count: int) -> None:
        """
        Args:
            end: of what it is reached by.
            count: replicas that there are to be.
        """
        self._pid = pid
        self._end = end
        self._count = count
        self._backoff = Backoff()
        self._channel: Channel | None = None  # None: before the start, and after the end
        self._born: Callable[[int, socket.socket], None]

    def start(self, born: Callable[[int, socket.socket], None]) -> None:
        """Have the replicas forked.

        Args:
            born: takes a replica's process id and what it is reached by, now and whenever one is replaced.
        """
        self._born = born
        self._channel = Channel(self._end, self._got, self._lost)
        for _ in range(self._count):
            self._channel.send(Fork())

    def replace(self, pid: int, lived_s: float) -> float | None:
        """End that replica, whatever it does, and have another one forked in a while; in how many seconds. None: there
        will be no other."""
        if self._channel is None:
            return None
        self._channel.send(End(pid))
        return self._fork_later(lived_s)

    def stop(self) -> None:
        """End it, and all replicas with it."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)

    def _fork_later(self, lived_s: float) -> float:
        pause_s = self._backoff.after(lived_s)
        asyncio.get_running_loop().call_later(pause_s, self._fork)
        return pause_s

    def _fork(self) -> None:
        if self._channel is not None:
            self._channel.send(Fork())

    def _got(self, message: Born, files: list[int]) -> None:
        if message.pid is not None:
            self._born(message.pid, socket.socket(fileno=files[0]))
        else:
            again_in_s = self._fork_later(0)
            log.error("a replica could not be forked", extra={"reason": message.reason, "again_in_s": again_in_s})

    def _lost(self) -> None:
        log.error("the nursery has ended: replicas end with it, and are not replaced before the next start")
        self.stop()


def forked(settings: Settings, listener: socket.socket) -> Nursery | None:
    """Start the nursery; None: there are to be no replicas. Before anything else is started, as is said above.

    Args:
        listener: not its business; closed there.
    """
    count = _count(settings)
    if count:
        from app.replicas.forks import be, nurse  # all that a replica needs, so that its pages are shared

        with suppress(BackendMissing):
            registry.backend("onnxruntime")  # imports the runtime, for the same reason
    gc.collect()
    gc.freeze()  # what was made so far stays: no collection looks at it again, or writes into pages that are shared
    if not count:
        return None
    mine, its = pair()
    service = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of libraries' threads, which rest at this time
        pid = os.fork()
    if pid == 0:
        listener.close()
        mine.close()
        be(partial(nurse, settings, its, service))
    its.close()
    return Nursery(pid, mine, count)


def _count(settings: Settings) -> int:
    """How many there are to be: none where a GPU computes, as a copy would take its memory once more; and none where
    requests are limited or logged one by one, which only one process can do."""
    is_alone = settings.key_requests_per_s or settings.address_requests_per_s or settings.log_requests
    if is_alone or settings.tls_cert or settings.trusted_proxies:
        return 0
    if settings.replicas is not None:
        return settings.replicas
    return 0 if find_spec("tensorrt") else min(AUTO_MAX, len(os.sched_getaffinity(0)) - 1)
