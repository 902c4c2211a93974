"""Bodies of requests under way: they take the memory that there is for them, and no more."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests import networks
from tests.service import Service

LIMIT_MIB = 4
ROW = bytes(16)
OCTETS = "application/octet-stream"
FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data = tmp_path_factory.mktemp("bodies") / "data"
    service = Service(data, bodies_mib=str(LIMIT_MIB), body_timeout_s="60").start()
    try:
        with service.client() as client:
            assert service.build(client, networks.doubled().SerializeToString(), "doubled")["state"] == "succeeded"
            assert infer(service).status_code == 200  # from now on its bodies are received in place
        yield service
    finally:
        service.stop()
    assert "Traceback" not in service.log


@pytest.fixture
def peers() -> Iterator[ExitStack]:
    """Closes what a test has opened."""
    with ExitStack() as opened:
        yield opened


def begun(service: Service, peers: ExitStack, nbytes: int, kind: str = OCTETS, sent: bytes = b"\0") -> socket.socket:
    """A request that does not go on."""
    url = httpx.URL(service.url)
    peer = peers.enter_context(socket.create_connection((url.host, url.port), timeout=30))
    head = f"POST /infer/doubled HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {nbytes}\r\n\r\n"
    peer.sendall(head.encode() + sent)
    return peer


def infer(service: Service, body: bytes = ROW, kind: str = OCTETS, path: str = "/infer/doubled") -> httpx.Response:
    headers = {"Content-Type": kind, "Accept": OCTETS}
    return httpx.post(f"{service.url}{path}", content=body, headers=headers, timeout=30, trust_env=False)


def held_bytes(service: Service) -> int:
    page = httpx.get(f"{service.url}/metrics", timeout=30, trust_env=False).text
    found = re.search(r"^jetforge_body_memory_used_bytes (\S+)$", page, re.MULTILINE)
    assert found is not None
    return int(float(found.group(1)))


@pytest.mark.parametrize(("nbytes", "count"), [(3 << 20, 1), (600 << 10, 6)], ids=["a large one", "smaller ones"])
def test_bodies_that_are_announced_and_do_not_come_leave_others_no_room(
    service: Service, peers: ExitStack, nbytes: int, count: int
) -> None:
    halves = [begun(service, peers, nbytes) for _ in range(count)]
    service.eventually(lambda: held_bytes(service) == count * nbytes)

    for path in ("/infer/doubled", "/v2/models/doubled/infer"):
        refused = infer(service, bytes(nbytes), path=path)
        problem = refused.json()
        assert (refused.status_code, problem["code"]) == (503, "bodies_full")
        assert problem["error"] and "JETFORGE_BODIES_MIB" in problem["hint"] and refused.headers["retry-after"]
    assert infer(service).status_code == 200  # small bodies are not kept waiting

    halves[0].close()
    service.eventually(lambda: held_bytes(service) == (count - 1) * nbytes)
    assert infer(service, bytes(nbytes)).content == bytes(nbytes)


def test_a_form_takes_room_as_it_comes(service: Service, peers: ExitStack) -> None:
    came = PART + bytes(3 << 20)
    half = begun(service, peers, 4 << 20, FORM, came)
    service.eventually(lambda: held_bytes(service) == len(came))

    refused = infer(service, PART + bytes(3 << 20) + b"\r\n--b--\r\n", FORM)
    assert (refused.status_code, refused.json()["code"]) == (503, "bodies_full")

    half.close()
    service.eventually(lambda: held_bytes(service) == 0)


def test_one_body_alone_may_be_larger_than_the_room(service: Service) -> None:
    service.eventually(lambda: held_bytes(service) == 0)

    for body in (bytes(2 * LIMIT_MIB << 20), bytes(16 << 10) + ROW):
        assert infer(service, body).content == body

    service.eventually(lambda: held_bytes(service) == 0)


def test_a_client_that_goes_in_the_middle_leaves_nothing_behind(service: Service, peers: ExitStack) -> None:
    for nbytes, sent in ((3 << 20, bytes(1 << 20)), (600 << 10, bytes(300 << 10))):
        peer = begun(service, peers, nbytes, sent=sent)
        service.eventually(lambda: held_bytes(service) > 0)
        peer.close()
        service.eventually(lambda: held_bytes(service) == 0)


def test_the_room_is_a_quarter_of_the_free_memory_where_none_is_set(tmp_path: Path) -> None:
    service = Service(tmp_path / "data").start()
    try:
        page = httpx.get(f"{service.url}/metrics", timeout=30, trust_env=False).text
    finally:
        service.stop()
    figures = {
        name: float(re.search(rf"^{name} (\S+)$", page, re.MULTILINE).group(1))  # type: ignore[union-attr]
        for name in ("jetforge_body_memory_limit_bytes", "jetforge_memory_total_bytes")
    }
    assert 64 << 20 < figures["jetforge_body_memory_limit_bytes"] <= figures["jetforge_memory_total_bytes"] / 4
