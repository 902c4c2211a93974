"""Channel: messages between two processes of this service, with the sockets that change hands."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

MESSAGE_BYTES_MAX = 1 << 16  # what is larger travels as a file in memory
_FILES_MAX = 3


class Channel:
    """One end. Messages arrive whole and in their order; nothing is lost while both ends live.

    Pickle is safe here: both ends are the same program, and nobody else holds the socket.
    """

    def __init__(self, end: socket.socket, got: Callable[[Any, list[int]], None], lost: Callable[[], None]) -> None:
        """
        Args:
            end: of a SOCK_SEQPACKET pair.
            got: takes a message and the descriptors that came with it, which are then its own to close.
            lost: the other end is gone; called once.
        """
        end.setblocking(False)
        self._end = end
        self._got = got
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._is_open = True
        self._loop.add_reader(end, self._read)

    def send(self, message: Any, files: list[int] | None = None) -> None:
        """Send; without a wait, and later where the other end is slow.

        Args:
            files: descriptors to send along; closed here once they are sent.
        """
        files = files or []
        data = pickle.dumps(message)
        if len(data) > MESSAGE_BYTES_MAX:
            files = [*files, _as_file(data)]
            data = b""
        self._waiting.append((data, files))
        self._write()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._end)
            self._loop.remove_writer(self._end)
            self._end.close()
        while self._waiting:
            _close(self._waiting.popleft()[1])

    def _write(self) -> None:
        while self._waiting and self._is_open:
            data, files = self._waiting[0]
            try:
                socket.send_fds(self._end, [data or b"\0"], files)
            except BlockingIOError:
                self._loop.add_writer(self._end, self._write)
                return
            except OSError:
                self._end_here()
                return
            self._waiting.popleft()
            _close(files)
        if self._is_open:
            self._loop.remove_writer(self._end)
        else:
            self.close()

    def _read(self) -> None:
        while self._is_open:
            try:
                data, files, _, _ = socket.recv_fds(self._end, MESSAGE_BYTES_MAX + 1, _FILES_MAX)
            except BlockingIOError:
                return
            except OSError:
                data, files = b"", []
            if not data:
                self._end_here()
                return
            if data == b"\0":
                data = _from_file(files.pop())
            self._got(pickle.loads(data), files)  # noqa: S301  # both ends are this program, see above

    def _end_here(self) -> None:
        if self._is_open:
            self.close()
            self._lost()


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, for two channels."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _as_file(data: bytes) -> int:
    descriptor = os.memfd_create("jetforge-message")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    return descriptor


def _from_file(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def _close(files: list[int]) -> None:
    for descriptor in files:
        os.close(descriptor)
