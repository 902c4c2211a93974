"""What a connection promises, whoever answers: uvicorn with the router, or the shortcut that receives in place."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import numpy as np
import pytest

from tests import networks
from tests.service import Service

FEATURES = 4
LONG_S = 60
STALLED_S = 2.0
SAME_ID = "X-Request-ID: the-same"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(
        tmp_path_factory.mktemp("connections") / "data",
        body_timeout_s=str(STALLED_S),
        header_timeout_s=str(STALLED_S),
        queue_rows_max="10000000",
    ).start()
    try:
        with service.client() as client:
            service.build(client, networks.doubled(FEATURES).SerializeToString(), "net")
            for path in ("/infer/net", "/infer/net:1"):  # seen once, an engine's requests need no router
                raw = {"Content-Type": "application/octet-stream"}
                assert client.post(path, content=tensor(0), headers=raw).status_code == 200
        yield service
    finally:
        service.stop()


def tensor(value: float, rows: int = 1) -> bytes:
    return np.full((rows, FEATURES), value, np.float32).tobytes()


def post(path: str, body: bytes, kind: str = "application/octet-stream", *headers: str, announced: int = -1) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Type: {kind}", "Accept: application/octet-stream"]
    lines += [f"Content-Length: {announced if announced >= 0 else len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def v2(value: float, path: str = "/v2/models/net/infer", *headers: str, **header: object) -> bytes:
    body = tensor(value)
    shape = {"shape": [1, FEATURES], "datatype": "FP32", "parameters": {"binary_data_size": len(body)}}
    text = json.dumps({"inputs": [{"name": "x", **shape}], "parameters": {"binary_data_output": True}, **header})
    length = f"Inference-Header-Content-Length: {len(text)}"
    return post(path, text.encode() + body, "application/octet-stream", length, *headers)


class Client:
    """One connection, byte by byte."""

    def __init__(self, service: Service) -> None:
        host, port = service.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), LONG_S)
        self._read = self.socket.makefile("rb")

    def send(self, data: bytes) -> Client:
        self.socket.sendall(data)
        return self

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self._read.readline().split()[1])
        headers = {}
        while line := self._read.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        return status, headers, self._read.read(int(headers.get("content-length", 0)))

    def is_closed(self) -> bool:
        try:
            return self._read.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._read.close()
        self.socket.close()


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with closing(Client(service)) as client:
        yield client


def test_the_shortcut_answers_as_the_router_does(service: Service) -> None:
    routed = "X-Forwarded-Proto: http"  # what uvicorn alone may judge goes its way
    npy = b"\x93NUMPY\x01\x00\x46\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4)}".ljust(69) + b"\n"
    requests = [
        (lambda *h: post("/infer/net", tensor(3), "application/octet-stream", *h), 200),
        (lambda *h: post("/infer/net:1?shape=1x4", tensor(3), "application/octet-stream", *h), 200),
        (lambda *h: post("/infer/net", npy + tensor(3), "application/x-npy", *h), 200),
        (lambda *h: post("/infer/net", b'{"inputs": [[1, 2, 3, 4]]}', "application/json", *h), 200),
        (lambda *h: v2(3, "/v2/models/net/infer", *h), 200),
        (lambda *h: v2(3, "/v2/models/net/versions/1/infer", *h, id="seven"), 200),
        (lambda *h: post("/infer/net", tensor(3)[1:], "application/octet-stream", *h), 422),
        (lambda *h: post("/infer/net", b"{", "application/json", *h), 422),
        (lambda *h: post("/infer/net", b"no image", "image/png", *h), 422),
        (lambda *h: post("/infer/net?top=0", tensor(3), "application/octet-stream", *h), 422),
        (lambda *h: post("/infer/net", tensor(3), "text/plain", *h), 415),
        (lambda *h: post("/infer/nobody", tensor(3), "application/octet-stream", *h), 404),
        (lambda *h: post("/infer/net", tensor(3), "application/octet-stream", "X-Timeout-Ms: soon", *h), 422),
        (lambda *h: v2(3, "/v2/models/net/versions/9/infer", *h), 404),
        (lambda *h: v2(3, "/v2/models/net/infer", *h, inputs=[]), 400),
        (lambda *h: post("/v2/models/net/infer", b"{}", "application/json", *h), 400),
    ]
    with closing(Client(service)) as one, closing(Client(service)) as other:
        for request, status in requests:
            for _ in range(2):  # the second finds what the first has left
                short, long = one.send(request(SAME_ID)).answer(), other.send(request(routed, SAME_ID)).answer()

                assert short[0] == long[0] == status, (request(), short, long)
                assert short[2] == long[2]
                assert {**short[1], "date": ""} == {**long[1], "date": ""}


def test_a_request_may_come_in_any_pieces(client: Client) -> None:
    request = v2(5)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for size in (1, 7, 60, len(request) - 1):
        for start in range(0, len(request), size):
            client.send(request[start : start + size])
            time.sleep(0.0005)

        assert client.answer()[2].endswith(tensor(10))


def test_pipelined_requests_are_answered_in_their_order_whoever_answers(client: Client) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
    both = [post("/infer/net", tensor(1)), v2(2), ask, post("/infer/net", tensor(3)), ask, ask, v2(4)]

    client.send(b"".join(both * 20))

    for _ in range(20):
        bodies = [client.answer()[2] for _ in both]
        assert [bodies[index][-16:] for index in (0, 1, 3, 6)] == [tensor(2), tensor(4), tensor(6), tensor(8)]
        assert bodies[2] == bodies[4] == bodies[5]


@pytest.mark.parametrize("rows", [10, 100_000], ids=["small", "large"])
def test_a_client_that_waits_for_leave_to_send_its_body_gets_it(client: Client, rows: int) -> None:
    request = post("/infer/net", tensor(1, rows), "application/octet-stream", "Expect: 100-continue")
    head, _, body = request.partition(b"\r\n\r\n")

    client.send(head + b"\r\n\r\n")
    assert client.answer()[0] == 100
    client.send(body)

    assert client.answer()[2] == tensor(2, rows)


def test_an_offer_to_go_on_with_another_protocol_is_ignored(client: Client) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    request = post("/infer/net", tensor(3), "application/octet-stream", *offer)
    head, _, body = request.partition(b"\r\n\r\n")

    together = client.send(request).answer()
    apart = client.send(head + b"\r\n\r\n").send(body).answer()

    assert together[0] == apart[0] == 200
    assert together[2] == apart[2] == tensor(6)
    assert client.send(post("/infer/net", tensor(4))).answer()[2] == tensor(8)


def test_an_offer_that_comes_in_pieces_never_makes_a_request_of_the_body(client: Client, service: Service) -> None:
    hidden = b"DELETE /engines/net:1 HTTP/1.1\r\nHost: test\r\n\r\n"
    request = post("/infer/net", hidden, "application/octet-stream", "Connection: Upgrade", "Upgrade: h2c")
    at = request.index(b"Upgrade: h2c") + 3

    client.send(request[:at])
    time.sleep(0.05)
    client.send(request[at : request.index(b"DELETE")])
    status, _, _ = client.answer()
    with suppress(OSError):
        client.send(hidden)

    assert status == 400
    assert client.is_closed()
    with service.client() as other:
        assert other.get("/engines/net:1").status_code == 200


def test_a_large_body_for_an_engine_that_is_not_there_costs_the_connection_nothing(client: Client) -> None:
    client.send(post("/infer/nobody", bytes(3 << 20)))
    assert client.answer()[0] == 404

    client.send(post("/infer/net", tensor(1)))
    assert client.answer()[2] == tensor(2)


def test_the_end_of_the_connection_is_the_client_s_choice(service: Service) -> None:
    with closing(Client(service)) as client:
        status, headers, _ = client.send(post("/infer/net", tensor(1), "image/png", "Connection: close")).answer()

        assert (status, headers["connection"]) == (422, "close")
        assert client.is_closed()


def test_who_owes_the_rest_of_a_request_and_is_silent_is_disconnected_and_holds_up_nobody(service: Service) -> None:
    halves = [post("/infer/net", tensor(1))[:-1], post("/infer/net", b"", announced=5 << 20), b"POST /infer/n", b""]
    halves.append(b"POST /jobs HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf")
    silent = [Client(service).send(half) for half in halves for _ in range(20)]

    with closing(Client(service)) as client:
        assert client.send(post("/infer/net", tensor(1))).answer()[2] == tensor(2)
    for connection in silent:
        if connection.is_closed():
            connection.close()
            continue
        with closing(connection):  # uvicorn's half may say why before it closes
            while not connection.is_closed():
                pass


def test_clients_that_hang_up_at_any_point_harm_nobody(service: Service) -> None:
    request = post("/infer/net", tensor(1, 100_000))
    for cut in (10, 150, 300, 20_000, 1_200_000, len(request) - 1, len(request)):
        Client(service).send(request[:cut]).close()

    with closing(Client(service)) as client:
        assert client.send(post("/infer/net", tensor(7))).answer()[2] == tensor(14)


def test_an_answer_that_is_not_fetched_is_not_overwritten_by_later_requests(service: Service) -> None:
    rows = 200_000  # 3 MiB: more than the sockets hold
    slow = [Client(service).send(post("/infer/net", tensor(value, rows))) for value in range(1, 5)]
    with closing(Client(service)) as client:
        for value in range(30):
            assert client.send(post("/infer/net", tensor(value, rows))).answer()[2] == tensor(2 * value, rows)

    for value, connection in enumerate(slow, 1):
        with closing(connection):
            assert connection.answer()[2] == tensor(2 * value, rows)


def test_many_clients_at_once_get_their_own_rows(service: Service) -> None:
    wrong: list[object] = []

    def ask(number: int) -> None:
        with closing(Client(service)) as client:
            for turn in range(60):
                value = number * 1000 + turn
                rows = 1 + (number + turn) % 3
                request = v2(value) if turn % 2 else post("/infer/net", tensor(value, rows))
                body = client.send(request).answer()[2]
                if not body.endswith(tensor(2 * value, 1 if turn % 2 else rows)):
                    wrong.append((value, body))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_every_request_is_counted_once_and_hung_up_ones_hold_no_engine(service: Service) -> None:
    routes = ("/infer/{ref}", "/v2/models/{model}/infer")
    with service.client() as asker:

        def told() -> list[float]:
            lines = dict(line.rsplit(" ", 1) for line in asker.get("/metrics").text.splitlines() if "#" not in line)
            named = [f'jetforge_http_requests_total{{method="POST",route="{route}",status="200"}}' for route in routes]
            stats = asker.get("/v2/models/net/stats").json()["model_stats"][0]["inference_stats"]["success"]["count"]
            return [float(lines.get(name, 0)) for name in named] + [stats]

        def leases() -> int:
            return int(asker.get("/engines/net").json()["warm"]["leases"])

        def settled() -> list[float]:
            """When no replica has more to tell: what it answered is told within a second."""
            first = told()
            time.sleep(1.5)
            return first if told() == first else []

        service.eventually(lambda: leases() == 0)
        before = service.eventually(settled)
        with closing(Client(service)) as client:
            for value in range(30):
                assert client.send(post("/infer/net", tensor(value))).answer()[0] == 200
                assert client.send(v2(value)).answer()[0] == 200
        assert [now - then for now, then in zip(service.eventually(settled), before, strict=True)] == [30, 30, 60]

        for _ in range(20):
            Client(service).send(post("/infer/net", tensor(1, 60_000)) + v2(1)).close()
        service.eventually(lambda: leases() == 0)


def test_an_answer_tells_where_its_time_went_when_it_is_asked_to(client: Client) -> None:
    for request in (post("/infer/net", tensor(1), "application/octet-stream", "X-Server-Timing: 1"),
                    v2(1, "/v2/models/net/infer", "X-Server-Timing: 1")):  # fmt: skip
        timing = client.send(request).answer()[1]["server-timing"]

        parts = dict(part.split(";dur=") for part in timing.split(", "))
        assert set(parts) == {"load", "queue", "decode", "compute", "encode", "total"}
        assert float(parts["total"]) >= float(parts["compute"]) > 0
    assert "server-timing" not in client.send(post("/infer/net", tensor(1))).answer()[1]


def test_a_stop_lets_the_request_under_way_end_and_leaves_idle_connections_behind(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    service = Service(tmp_path_factory.mktemp("stop") / "data", "--no-worker").start()
    idle = Client(service)
    idle.send(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n").answer()

    assert service.stop() == 0
    assert idle.is_closed()
    idle.close()
