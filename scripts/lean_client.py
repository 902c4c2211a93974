"""A client that costs next to nothing: one connection, one request made once, its answer read into one buffer."""

from __future__ import annotations

import multiprocessing
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

ANSWER_BYTES = 1 << 20  # largest answer, head included
_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"


@dataclass(frozen=True)
class Post:
    """A POST request as it goes over the wire."""

    path: str
    headers: dict[str, str]
    body: bytes

    def encoded(self, host: str) -> bytes:
        lines = [f"POST {self.path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Line:
    """One kept-alive connection."""

    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).netloc
        name, port = self.host.rsplit(":", 1)
        self._socket = socket.create_connection((name, int(port)), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(ANSWER_BYTES))

    def ask(self, request: bytes) -> bytes:
        """The body of the answer.

        Raises:
            RuntimeError: its status is not 200.
            OSError: there is no answer.
        """
        status, head, body = self.answer(request)
        if status != 200:
            raise RuntimeError((head + _END_OF_HEAD + body).decode(errors="replace")[:600])
        return body

    def send(self, data: bytes) -> None:
        """Send a part of a request, or one whose answer nobody waits for."""
        self._socket.sendall(data)

    def answer(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Status, head in lower case and body of the answer; raises OSError where there is none."""
        self.send(request)
        have, start, end, head = 0, 0, ANSWER_BYTES, b""
        while have < end:
            count = self._socket.recv_into(self._buffer[have:])
            if count == 0:
                raise ConnectionAbortedError(f"the server closed the connection after {have} bytes of the answer")
            have += count
            if not start:
                head, start, end = self._ends(have)
        return int(head[9:12]), head, bytes(self._buffer[start:end])

    def close(self) -> None:
        self._socket.close()

    def _ends(self, have: int) -> tuple[bytes, int, int]:
        """The answer's head, and where its body starts and ends; 0 for the start while the head is not complete."""
        head, found, _ = bytes(self._buffer[:have]).partition(_END_OF_HEAD)
        if not found:
            return b"", 0, ANSWER_BYTES
        head = head.lower()
        line = next(line for line in head.split(b"\r\n") if line.startswith(_LENGTH))
        start = len(head) + len(found)
        return head, start, start + int(line[len(_LENGTH) :])


def times_ms(url: str, post: Post, runs: int) -> list[float]:
    """How long each of so many requests took on one connection, after some that do not count."""
    line = Line(url)
    request = post.encoded(line.host)
    times = []
    for _ in range(runs + 20):
        started = time.perf_counter()
        line.ask(request)
        times.append((time.perf_counter() - started) * 1e3)
    line.close()
    return times[20:]


def requests_per_s(url: str, post: Post, clients: int, seconds: float) -> float:
    """Of so many clients at once, each a process of its own."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(clients)
    with context.Pool(clients, initializer=_share, initargs=(barrier,)) as pool:
        return sum(pool.starmap(_asked_for, [(url, post, seconds)] * clients, chunksize=1))


def _share(barrier: object) -> None:
    global _together
    _together = barrier


def _asked_for(url: str, post: Post, seconds: float) -> float:
    """Requests a second of this client, counted to the end of the last."""
    line = Line(url)
    request = post.encoded(line.host)
    for _ in range(5):
        line.ask(request)
    _together.wait(60)  # type: ignore[attr-defined]
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        line.ask(request)
        count += 1
    rate = count / (time.monotonic() - started)
    line.close()
    return rate


_together: object = None
