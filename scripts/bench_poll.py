"""Polls a service as many dashboards do, each with a connection of its own, and measures what that costs it.

Beside /status and /jobs stands a bare ASGI application that answers the same 304 under the same server (uvicorn, one
process, uvloop, httptools): what is above it is ours. Processor time is the server process's own, user and system.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

INTERVAL_S = 2.0
BARE = """
import uvicorn
async def bare(scope, receive, send):
    if scope["type"] == "http":
        headers = [(b"etag", b'"bare"'), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 304, "headers": headers})
        await send({"type": "http.response.body"})
import socket, sys
listener = socket.socket(); listener.bind(("127.0.0.1", 0))
print(f"listening address=http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
config = uvicorn.Config(bare, access_log=False, log_level="warning", lifespan="off", server_header=False)
uvicorn.Server(config).run(sockets=[listener])
"""


def main() -> None:
    pollers = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 20
    print(f"{pollers} pollers, one request each {INTERVAL_S:g} s with If-None-Match, {seconds:g} s each\n")
    print("| polled | requests a second | not 304 | p50 ms | p99 ms | share of a core | µs a request |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, "-m", "app", "serve", "--port", "0", "--data-dir", folder]
        with _server(ours) as (url, pid), _server([sys.executable, "-c", BARE]) as (bare_url, bare_pid):
            for _ in range(2):
                _report("a bare ASGI 304", bare_url, "/", '"bare"', bare_pid, pollers, seconds)
                for path in ("/status", "/jobs"):
                    tag = httpx.get(url + path, trust_env=False).headers["etag"]
                    _report(f"`GET {path}`", url, path, tag, pid, pollers, seconds)


@contextmanager
def _server(command: list[str]) -> Iterator[tuple[str, int]]:
    """A server process; its address and its process id."""
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        address = next(found[1] for line in server.stderr if (found := re.search(r"address=(\S+)", line)))
        _wait(address)
        yield address, server.pid
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)


def _wait(address: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            httpx.get(f"{address}/healthz", trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"nothing answers at {address}")


def _report(name: str, url: str, path: str, tag: str, pid: int, pollers: int, seconds: float) -> None:
    asyncio.run(_polled(url, path, tag, pollers, 4.0))  # connections, caches
    before_s, started_s = _cpu_s(pid), time.monotonic()
    times_ms, others = asyncio.run(_polled(url, path, tag, pollers, seconds))
    cpu_s, wall_s = _cpu_s(pid) - before_s, time.monotonic() - started_s
    p99 = statistics.quantiles(times_ms, n=100)[98]
    print(
        f"| {name} | {len(times_ms) / wall_s:.0f} | {others} | {statistics.median(times_ms):.2f} | {p99:.2f}"
        f" | {cpu_s / wall_s:.1%} | {cpu_s / len(times_ms) * 1e6:.0f} |",
        flush=True,
    )


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _polled(url: str, path: str, tag: str, pollers: int, seconds: float) -> tuple[list[float], int]:
    """Milliseconds of every request, and how many were not answered 304."""
    host, _, port = url.removeprefix("http://").partition(":")
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nIf-None-Match: {tag}\r\n\r\n".encode()
    end = time.monotonic() + seconds
    times_ms: list[float] = []
    others = 0

    async def poll() -> None:
        nonlocal others
        await asyncio.sleep(random.uniform(0, INTERVAL_S))
        reader, writer = await asyncio.open_connection(host, int(port))
        due = time.monotonic()
        while due < end:
            started = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            times_ms.append((time.perf_counter() - started) * 1e3)
            if not head.startswith(b"HTTP/1.1 304"):
                others += 1
                length = re.search(rb"content-length: (\d+)", head, re.I)
                await reader.readexactly(int(length[1]) if length else 0)
            due += INTERVAL_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        writer.close()

    await asyncio.gather(*(poll() for _ in range(pollers)))
    return times_ms, others


if __name__ == "__main__":
    main()
