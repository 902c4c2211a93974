"""Connections that ask for nothing, and bodies that never end: they hold up nobody and are given up in time."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import networks
from tests.service import Service, resident_bytes

CONNECTIONS_MAX = 300
IDLE = 10_000
STALLED_S = 3
GROWTH_MIB_MAX = 64
ROW = bytes(16)
HEAD = "POST /infer/doubled HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
SHAPE = "Content-Length: 16\r\n\r\n"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of 300 connections that gives up what stands still after 3 s."""
    data = tmp_path_factory.mktemp("connections") / "data"
    service = Service(
        data, max_connections=str(CONNECTIONS_MAX), body_timeout_s=str(STALLED_S), header_timeout_s=str(STALLED_S)
    ).start()
    try:
        with service.client() as client:
            assert service.build(client, networks.doubled().SerializeToString(), "doubled")["state"] == "succeeded"
        yield service
    finally:
        service.stop()
    assert "Traceback" not in service.log


@pytest.fixture
def peers() -> Iterator[ExitStack]:
    """Closes what a test has opened."""
    with ExitStack() as opened:
        yield opened


def connected(service: Service, peers: ExitStack, sent: str = "") -> socket.socket:
    url = httpx.URL(service.url)
    peer = peers.enter_context(socket.create_connection((url.host, url.port), timeout=30))
    peer.sendall(sent.encode())
    return peer


def received(peer: socket.socket) -> bytes:
    """All that comes until the server closes."""
    pieces = []
    try:
        while piece := peer.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def problem_in(data: bytes) -> tuple[int, dict[str, Any], str]:
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body), head.decode().lower()


def infer(service: Service) -> int:
    headers = {"Content-Type": "application/octet-stream"}
    return httpx.post(
        f"{service.url}/infer/doubled", content=ROW, headers=headers, timeout=30, trust_env=False
    ).status_code


def sockets_of(pid: int) -> int:
    links = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(file.readlink()))
        except OSError:  # closed meanwhile
            continue
    return sum(link.startswith("socket:") for link in links)


def test_ten_thousand_idle_connections_do_not_keep_others_from_being_answered(
    guarded: Service, peers: ExitStack
) -> None:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(IDLE, most - 1000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(files, count + 500), most))
    peers.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (files, most))
    assert guarded.process is not None
    before = resident_bytes(guarded.process.pid)

    for number in range(count):
        connected(guarded, peers)
        if number % 2500 == 0:
            assert infer(guarded) == 200

    assert infer(guarded) == 200
    guarded.eventually(lambda: sockets_of(guarded.process.pid) <= CONNECTIONS_MAX + 20)
    assert resident_bytes(guarded.process.pid) - before < GROWTH_MIB_MAX << 20


def test_an_idle_connection_is_closed_in_time_and_one_that_asks_again_and_again_is_not(
    guarded: Service, peers: ExitStack
) -> None:
    silent, half_a_head = connected(guarded, peers), connected(guarded, peers, HEAD)
    begun = time.monotonic()
    own_ports = set()
    with guarded.client() as client:
        while time.monotonic() - begun < 2 * STALLED_S:
            answer = client.get("/healthz")
            own_ports.add(answer.extensions["network_stream"].get_extra_info("client_addr")[1])
            time.sleep(0.3)

    assert len(own_ports) == 1
    assert received(silent) == b""
    assert problem_in(received(half_a_head))[0] == 408


@pytest.mark.parametrize(
    "sent", ["GET /", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nX: "], ids=["line", "headers", "header"]
)
def test_a_head_that_never_ends_is_refused_and_not_kept(guarded: Service, peers: ExitStack, sent: str) -> None:
    assert guarded.process is not None
    before = resident_bytes(guarded.process.pid)
    peer = connected(guarded, peers, sent)
    piece = b"x: 1\r\n" * 10_000 if sent.endswith("\n") else b"x" * 60_000

    with contextlib.suppress(OSError):  # it closes while we send
        for _ in range(2000):
            peer.sendall(piece)

    assert resident_bytes(guarded.process.pid) - before < GROWTH_MIB_MAX << 20
    assert infer(guarded) == 200


def test_a_head_that_is_too_large_is_answered_431(guarded: Service, peers: ExitStack) -> None:
    peer = connected(guarded, peers, HEAD + "X: " + "x" * (64 << 10))

    status, problem, _ = problem_in(received(peer))

    assert (status, problem["code"]) == (431, "headers_too_large")


def test_many_headers_that_are_short_together_are_read(guarded: Service) -> None:
    headers = {f"X-{number}": "x" * 100 for number in range(300)}

    for _ in range(3):
        assert httpx.get(f"{guarded.url}/healthz", headers=headers, trust_env=False).status_code == 200


@pytest.mark.parametrize("sent", [HEAD + SHAPE, HEAD + SHAPE + "\0" * 10], ids=["nothing", "a part"])
def test_a_body_that_never_ends_is_answered_408(guarded: Service, peers: ExitStack, sent: str) -> None:
    peer = connected(guarded, peers, sent)

    status, problem, head = problem_in(received(peer))

    assert (status, problem["code"]) == (408, "request_too_slow")
    assert problem["error"] and problem["hint"] and "connection: close" in head


def test_a_body_that_comes_slowly_but_comes_is_answered(guarded: Service, peers: ExitStack) -> None:
    piece = bytes(8192)
    peer = connected(guarded, peers, HEAD + f"Connection: close\r\nContent-Length: {16 * len(piece)}\r\n\r\n")
    for _ in range(16):
        time.sleep(STALLED_S / 14)  # together longer than it may stand still
        peer.sendall(piece)

    assert received(peer).startswith(b"HTTP/1.1 200")


def test_half_sent_bodies_on_every_connection_are_told_apart_from_those_that_find_no_room(
    guarded: Service, peers: ExitStack
) -> None:
    halves = [connected(guarded, peers, HEAD + SHAPE + "\0") for _ in range(CONNECTIONS_MAX)]
    guarded.eventually(lambda: sockets_of(guarded.process.pid) > CONNECTIONS_MAX)

    status, problem, head = problem_in(received(connected(guarded, peers)))

    assert (status, problem["code"]) == (503, "connections_full")
    assert "retry-after: " in head
    assert {problem_in(received(half))[0] for half in halves} == {408}
    assert infer(guarded) == 200
