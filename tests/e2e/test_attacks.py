"""What an attacker tries over the network: each attempt is refused, and the service goes on."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest

from tests import networks
from tests.keys import add_key, bearer
from tests.service import Service

MODEL = networks.doubled_with_marker("attacks").SerializeToString()
CLIMBS = [
    "..%2f..%2f..%2fetc%2fpasswd",
    "..%5c..%5cetc%5cpasswd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "%2e%2e",
    "....//....//etc/passwd",
    "%00",
    "sha256:..%2f..%2f..%2fetc%2fpasswd",
    "digits:..%2f..%2fetc",
    "%c0%ae%c0%ae%2fetc%2fpasswd",
    "a" * 5000,
]
XSS = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on loopback without keys and without patience; nothing is built on it."""
    running = Service(
        tmp_path_factory.mktemp("target") / "data",
        "--no-worker",
        header_timeout_s="1",
        body_timeout_s="1",
        max_uploads_per_client="2",
    ).start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log


@pytest.fixture
def client(target: Service) -> Iterator[httpx.Client]:
    with target.client() as client:
        yield client


def connected(service: Service) -> socket.socket:
    url = httpx.URL(service.url)
    peer = socket.create_connection((url.host, url.port), timeout=60)
    return peer


def answer_of(peer: socket.socket) -> tuple[int | None, bytes]:
    """Status and body of what comes until the server closes; None when it closes without a word."""
    data = b""
    try:
        while piece := peer.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        pass
    head, _, body = data.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else None), body


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["code"])


# --- names and ids -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("climb", CLIMBS, ids=range(len(CLIMBS)))
def test_a_path_in_a_name_or_an_id_leads_nowhere(client: httpx.Client, climb: str) -> None:
    asked = [("GET", f"/jobs/{climb}"), ("GET", f"/jobs/{climb}/log"), ("GET", f"/jobs/{climb}/events")]
    asked += [("GET", f"/engines/{climb}"), ("GET", f"/engines/{climb}/file"), ("DELETE", f"/engines/{climb}")]
    asked += [("GET", f"/models/{climb}"), ("DELETE", f"/models/{climb}"), ("GET", f"/calibrations/{climb}")]
    asked += [("POST", f"/engines/{climb}/load"), ("GET", f"/v2/models/{climb}"), ("GET", f"/{climb}")]

    for method, path in asked:
        answer = client.request(method, path)

        assert 400 <= answer.status_code < 500, (method, path, answer.text)
        assert "root:" not in answer.text


@pytest.mark.parametrize("field", ["name", "model_id", "calibration_id"])
def test_a_path_in_a_field_of_a_build_leads_nowhere(client: httpx.Client, field: str) -> None:
    fields = {"name": "mine", "model_id": "sha256:" + "0" * 64, field: "../../etc/passwd"}

    answer = client.post("/jobs", data=fields)

    assert answer.status_code in (404, 422), answer.text


def test_a_path_in_a_file_name_stays_a_name(target: Service, client: httpx.Client) -> None:
    answer = client.post("/models", files={"model": ("../../../../tmp/owned.onnx", MODEL)})

    assert answer.status_code == 201
    stored = {path.name for path in target.data_dir.rglob("*") if path.is_file()}
    assert not any("owned" in name for name in stored)
    client.delete(f"/models/{answer.json()['id']}")


def test_markup_in_a_name_comes_back_as_json_that_no_browser_takes_for_a_page(client: httpx.Client) -> None:
    stored = client.post("/models", files={"model": (XSS, MODEL)})
    answers = [
        stored,
        client.get("/models"),
        client.post("/jobs", data={"name": XSS, "model_id": stored.json()["id"]}),
        client.get("/jobs", params={"name": XSS}),
        client.get(f"/engines/{XSS}"),
        client.get(f"/{XSS}"),
    ]

    for answer in answers:
        assert answer.headers["content-type"] in ("application/json", "application/problem+json")
        assert answer.headers["x-content-type-options"] == "nosniff"
        json.loads(answer.text)
    client.delete(f"/models/{stored.json()['id']}")


def test_pages_trust_no_foreign_script_and_cannot_be_framed(client: httpx.Client) -> None:
    page = client.get("/docs")

    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["referrer-policy"] == "no-referrer"


# --- browsers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/jobs", "/models", "/infer/digits", "/v2/repository/models/digits/unload"])
def test_a_foreign_page_cannot_write_through_a_browser(
    client: httpx.Client, path: str, headers: dict[str, str]
) -> None:
    answer = client.post(path, files={"model": MODEL}, data={"name": "owned"}, headers=headers)

    assert (answer.status_code, code_of(answer)) == (403, "cross_site_refused")
    assert client.get("/jobs").json()["jobs"] == client.get("/models").json()["models"] == []


def test_the_services_own_pages_and_programs_may_write(target: Service, client: httpx.Client) -> None:
    own = {"Origin": target.url, "Sec-Fetch-Site": "same-origin"}

    for headers in (own, {"Sec-Fetch-Site": "none"}, {}):
        assert client.post("/jobs", headers=headers, data={"name": "x"}).status_code == 422


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.com"])
def test_a_name_that_was_pointed_at_this_machine_opens_nothing(client: httpx.Client, host: str) -> None:
    for method in ("GET", "POST"):
        answer = client.request(method, "/jobs", headers={"Host": host, "Origin": f"http://{host}"})

        assert (answer.status_code, code_of(answer)) == (403, "host_refused")


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "192.168.1.7:8000", "jetson", ""])
def test_the_services_addresses_and_plain_names_open(client: httpx.Client, host: str) -> None:
    assert client.get("/jobs", headers={"Host": host}).status_code == 200


def test_no_page_of_another_site_may_read(client: httpx.Client) -> None:
    plain = client.get("/jobs", headers={"Origin": "https://evil.example"})
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}

    assert "access-control-allow-origin" not in plain.headers
    assert client.options("/jobs", headers=asked).status_code == 405


# --- connections -------------------------------------------------------------------------------------------------


def test_headers_that_never_end_are_given_up(target: Service, client: httpx.Client) -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(connected(target)) for _ in range(50)]
        for peer in peers:
            peer.sendall(b"GET /jobs HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert client.get("/jobs").status_code == 200

        statuses = [answer_of(peer)[0] for peer in peers]

    assert statuses == [408] * 50


@pytest.mark.parametrize("drip", [b"a", b"\r\n"], ids=["header bytes", "line ends before the request"])
def test_headers_that_drip_are_given_up_all_the_same(target: Service, drip: bytes) -> None:
    with connected(target) as peer:
        if drip == b"a":
            peer.sendall(b"GET /jobs HTTP/1.1\r\nX-Slow: ")
        end = time.monotonic() + 60
        try:
            while time.monotonic() < end:
                peer.sendall(drip)
                time.sleep(0.1)
        except OSError:
            return  # closed by the service
    raise AssertionError("the connection was kept")


def test_a_connection_that_says_nothing_is_closed(target: Service) -> None:
    with connected(target) as peer:
        assert answer_of(peer) == (None, b"")


def test_a_body_that_stalls_is_given_up_and_nothing_of_it_is_kept(target: Service) -> None:
    def stored() -> set[str]:
        return {path.name for path in (target.data_dir / "artefacts").rglob("*") if path.is_file()}

    before = stored()
    with connected(target) as peer:
        peer.sendall(b"POST /models HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n" + MODEL)

        status, body = answer_of(peer)

    assert (status, json.loads(body)["code"]) == (408, "request_too_slow")
    target.eventually(lambda: stored() == before)


def test_a_body_that_keeps_coming_is_waited_for(client: httpx.Client) -> None:
    def slow() -> Iterator[bytes]:
        for _ in range(6):
            yield b"x" * 8192
            time.sleep(0.5)

    answer = client.post("/models", content=slow())

    assert code_of(answer) == "model_rejected"


def test_an_answer_that_nobody_reads_is_given_up(target: Service, client: httpx.Client) -> None:
    with connected(target) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200)

        target.eventually(lambda: is_closed(peer))

    assert client.get("/healthz").status_code == 200


def is_closed(peer: socket.socket) -> bool:
    """Whether the other side has ended the connection, without reading what it sent."""
    try:
        peer.send(b"\r\n")
    except OSError:
        return True
    return False


@pytest.mark.parametrize(
    "head",
    [
        b"GET /jobs HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /jobs?name=" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /jobs HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % number for number in range(10_000)) + b"\r\n",
        b"GET /jobs HTTP/1.1\r\nX-Endless: " + b"a" * 400_000,
    ],
    ids=["one header", "the address", "many headers", "without end"],
)
def test_oversized_headers_are_refused_at_once(target: Service, head: bytes) -> None:
    with connected(target) as peer:
        with suppress(OSError):  # refused before all was sent
            peer.sendall(head)

        status, body = answer_of(peer)

    assert status == 431
    assert json.loads(body)["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /models HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /",
        b"POST /models HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET \xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["no request", "TLS", "negative length", "two lengths", "bad chunk", "no address"],
)
def test_what_is_no_http_is_refused_and_the_connection_closed(target: Service, request_bytes: bytes) -> None:
    with connected(target) as peer:
        peer.sendall(request_bytes)

        status, _ = answer_of(peer)

    assert status in (400, 408)


# --- too much ----------------------------------------------------------------------------------------------------


def test_more_uploads_at_once_than_a_client_may_run_are_refused(target: Service, client: httpx.Client) -> None:
    go_on = threading.Event()

    def held() -> Iterator[bytes]:
        for _ in range(20):  # and not for ever: the client reads no refusal before it has sent all
            if go_on.wait(0.2):
                return
            yield b"x" * 8192

    def upload() -> None:
        with target.client() as other:
            while not go_on.is_set():  # again: it may be refused itself, while the main thread holds a slot
                with suppress(httpx.TransportError):
                    other.post("/models", content=held())

    uploads = [threading.Thread(target=upload) for _ in range(2)]
    for thread in uploads:
        thread.start()
    try:
        refused = target.eventually(lambda: _refused_upload(client))
        assert (refused.status_code, code_of(refused)) == (429, "too_many_uploads")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/jobs").status_code == 200
    finally:
        go_on.set()
        for thread in uploads:
            thread.join(60)

    target.eventually(lambda: client.post("/models", content=b"hello").status_code == 422)


def _refused_upload(client: httpx.Client) -> httpx.Response | None:
    answer = client.post("/models", content=b"hello")
    return answer if answer.status_code == 429 else None


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with keys, rate limits and pages of another site that it lets in."""
    data_dir = tmp_path_factory.mktemp("limited") / "data"
    add_key(data_dir, "owner", "admin")
    running = Service(
        data_dir,
        "--no-worker",
        key_requests_per_s="1",
        allowed_origins="https://fleet.example",
        key_attempts_per_min="5",
    )
    yield running.start()
    assert running.stop() == 0
    assert "Traceback" not in running.log


def key_for(service: Service, name: str, *roles: str, **fields: Any) -> str:
    """A key that the service has noticed."""
    key = add_key(service.data_dir, name, *roles, **{"requests_per_s": 1e6, **fields})
    with service.client() as client:
        service.eventually(lambda: client.get("/device", headers=bearer(key)).status_code not in (401, 429))
    return key


def test_a_key_that_asks_too_fast_is_told_when_to_come_back(limited: Service) -> None:
    slow, fast = key_for(limited, "slow", "read", requests_per_s=None), key_for(limited, "fast", "read")

    with limited.client() as client:
        answers = [client.get("/jobs", headers=bearer(slow)) for _ in range(20)]
        others = [client.get("/jobs", headers=bearer(fast)) for _ in range(20)]

    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and code_of(refused[0]) == "rate_limited"
    assert int(refused[0].headers["retry-after"]) >= 1
    assert {answer.status_code for answer in others} == {200}


def test_guessing_keys_is_slowed_down_and_locks_nobody_out(limited: Service) -> None:
    key = key_for(limited, "honest", "read")

    with limited.client() as client:
        guesses = [client.get("/jobs", headers=bearer(f"jetforge_{number:043d}")) for number in range(30)]
        honest = client.get("/jobs", headers=bearer(key))
        without = client.get("/jobs")

    assert {answer.status_code for answer in guesses} <= {401, 429}
    assert code_of(guesses[-1]) == "too_many_attempts" and int(guesses[-1].headers["retry-after"]) >= 1
    assert (honest.status_code, without.status_code) == (200, 401)


def test_a_body_over_the_keys_own_limit_is_refused(limited: Service) -> None:
    key = key_for(limited, "small", "build", max_body_mib=1)

    with limited.client(headers=bearer(key)) as client:
        announced = client.post("/models", content=bytes(2 << 20))
        streamed = client.post("/models", content=(bytes(1 << 18) for _ in range(8)))
        fitting = client.post("/models", content=b"hello")

    assert (announced.status_code, streamed.status_code, fitting.status_code) == (413, 413, 422)


def test_a_page_that_the_owner_named_may_ask_and_read(limited: Service) -> None:
    key = key_for(limited, "page", "build")
    page = {"Origin": "https://fleet.example"}

    with limited.client() as client:
        asked = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = client.options("/jobs", headers=asked)
        written = client.post("/jobs", headers={**page, **bearer(key)}, data={"name": "x"})
        other = client.post("/jobs", headers={"Origin": "https://evil.example", **bearer(key)}, data={"name": "x"})

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://fleet.example"
    assert "access-control-allow-credentials" not in preflight.headers
    assert (written.status_code, written.headers["access-control-allow-origin"]) == (422, "https://fleet.example")
    assert (other.status_code, code_of(other)) == (403, "cross_site_refused")
    assert "access-control-allow-origin" not in other.headers


def test_the_audit_log_says_who_changed_what_and_who_tried(limited: Service) -> None:
    builder, reader = key_for(limited, "builder", "build"), key_for(limited, "nosy", "read")
    owner = key_for(limited, "auditor", "admin")
    with limited.client() as client:
        made = client.post("/models", files={"model": MODEL}, headers=bearer(builder))
        client.delete(f"/models/{made.json()['id']}", headers=bearer(builder))
        client.delete("/engines/digits", headers=bearer(reader))
        client.get("/models", headers=bearer(builder))

        entries = client.get("/audit", params={"limit": 3}, headers=bearer(owner)).json()["entries"]
        denied = client.get("/audit", headers=bearer(builder))

    told = [(entry["who"], entry["method"], entry["status"]) for entry in reversed(entries)]
    assert told == [("builder", "POST", 201), ("builder", "DELETE", 204), ("nosy", "DELETE", 403)]
    assert entries[2]["made"] == f"/models/{made.json()['id']}"
    assert entries[2]["key"] and entries[2]["address"] == "127.0.0.1"
    assert denied.status_code == 403
    for key in (builder, reader, owner):
        assert key not in (limited.data_dir / "audit" / "audit.jsonl").read_text()
        assert key not in limited.log
