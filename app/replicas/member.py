"""Member: one replica, as the service's own process sees it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from functools import partial

from app.domain.builds import Digest
from app.replicas.channel import Channel
from app.replicas.messages import Drop, FromReplica, ToReplica


class Member:
    """What a replica has, and what it was asked for."""

    def __init__(
        self,
        pid: int,
        end: socket.socket,
        got: Callable[[Member, FromReplica, list[int]], None],
        lost: Callable[[Member], None],
    ) -> None:
        """
        Args:
            end: of what it is reached by.
            got: takes its messages, with their descriptors.
            lost: it has ended by itself.
        """
        self.pid = pid
        self.connections = 0
        self.copies: dict[str, Digest] = {}  # by reference, as clients write it
        self.copy_bytes: dict[Digest, int] = {}
        self.asked: dict[str, Digest] = {}  # to load, and not answered yet
        self.in_vain: dict[str, Digest] = {}  # asked, and not asked again
        self.dropping: dict[Digest, asyncio.Future[None]] = {}
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._since_s = time.monotonic()
        self._channel = Channel(end, partial(got, self), partial(lost, self))

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._since_s

    def send(self, message: ToReplica, descriptor: int | None = None) -> None:
        self._channel.send(message, [descriptor] if descriptor is not None else [])

    def drop(self, blob: Digest) -> asyncio.Future[None]:
        """Have it give its copy up, which no connection goes to from now on; done when it has."""
        self.copies = {ref: of for ref, of in self.copies.items() if of != blob}
        done = self.dropping.get(blob)
        if done is None:
            done = self.dropping[blob] = asyncio.get_running_loop().create_future()
            self.send(Drop(blob))
        return done

    def dropped(self, blob: Digest) -> int:
        """It has no copy any more; how many bytes that took."""
        if done := self.dropping.pop(blob, None):
            done.set_result(None)
        return self.copy_bytes.pop(blob, 0)

    def close(self) -> None:
        """Hear no more of it."""
        self._channel.close()
        if not self.gone.done():
            self.gone.set_result(None)
