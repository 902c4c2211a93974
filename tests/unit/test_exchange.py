"""Requests that are answered without uvicorn, by an application that does what the service's own never would."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.api.exchange import BODY, EAGER_BYTES
from app.api.heads import parsed
from tests.fronts import LONG_S, serving

LARGE = 3 * EAGER_BYTES
FLOOD = 8 << 20


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers as the path says; "seen" tells whether the body was looked at."""
    kind = scope["path"].rpartition("/")[2]
    if kind == "fail":
        raise RuntimeError("on purpose")
    if kind == "silent":
        return
    seen = 0
    if kind == "split":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-name", b"a\r\nx-other: b")]})
        await send({"type": "http.response.body", "body": b""})
        return
    if kind == "flood":
        await flood(send, await scope[BODY]())
        return
    if kind == "whole":
        seen = len(await scope[BODY]())
    elif kind == "received":
        seen = len((await receive())["body"])
        assert (await receive_after(receive, send, seen))["type"] == "http.disconnect"
        return
    length = [] if kind == "endless" else [(b"content-length", b"%d" % (10 * len(str(seen))))]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    for _ in range(9):
        await send({"type": "http.response.body", "body": str(seen).encode(), "more_body": True})
    await send({"type": "http.response.body", "body": memoryview(str(seen).encode())})


async def receive_after(receive: Receive, send: Send, seen: int) -> Message:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
    await send({"type": "http.response.body", "body": b"%010d" % seen})
    return await receive()


async def flood(send: Send, body: memoryview) -> None:
    """The body's first byte, as often as no socket can hold."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % FLOOD)]})
    await send({"type": "http.response.body", "body": bytes(body[:1]) * FLOOD})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(application) as port:
        yield port


@pytest.fixture
def connection(port: int) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG_S)
    yield connection
    connection.close()


def asked(connection: http.client.HTTPConnection, kind: str, size: int) -> bytes:
    connection.request("POST", f"/infer/{kind}", bytes(size))
    answer = connection.getresponse()
    assert answer.status == 200
    return answer.read()


@pytest.mark.parametrize("size", [1, EAGER_BYTES, LARGE])
def test_the_body_is_there_for_who_asks_for_it_in_place_or_as_asgi_has_it(connection, size):
    for _ in range(3):
        assert asked(connection, "whole", size) == 10 * str(size).encode()
        assert asked(connection, "received", size) == b"%010d" % size


@pytest.mark.parametrize("size", [1, EAGER_BYTES, LARGE])
def test_a_body_that_nobody_wants_is_read_and_the_connection_goes_on(connection, size):
    for _ in range(3):
        assert asked(connection, "refused", size) == b"0" * 10
    assert asked(connection, "whole", 5) == b"5" * 10


@pytest.mark.parametrize("size", [1, LARGE])
def test_an_answer_of_unannounced_length_ends_with_the_connection(connection, size):
    assert asked(connection, "endless", size) == b"0" * 10


@pytest.mark.parametrize("kind", ["fail", "silent", "split"])
def test_an_application_that_does_not_answer_ends_the_connection(connection, kind, caplog):
    connection.request("POST", f"/infer/{kind}", b"x")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        connection.getresponse()


def test_leave_to_send_a_body_is_not_given_when_nobody_wants_it(port):
    with socket.create_connection(("127.0.0.1", port), LONG_S) as client:
        client.sendall(b"POST /infer/refused HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % LARGE)
        with client.makefile("rb") as answer:
            lines = answer.read().split(b"\r\n")  # to the end of the connection

    assert lines[0] == b"HTTP/1.1 200 OK"
    assert b"connection: close" in lines


def test_requests_of_a_client_that_does_not_take_its_answers_wait_and_keep_their_order(port):
    letters = b"abcdefgh"
    with socket.create_connection(("127.0.0.1", port), LONG_S) as client:
        for letter in letters:  # one after another, so that some come while an answer is stuck
            client.sendall(b"POST /infer/flood HTTP/1.1\r\nContent-Length: 1\r\n\r\n" + bytes([letter]))
            time.sleep(0.02)
        with client.makefile("rb") as answers:
            for letter in letters:
                while answers.readline().strip():
                    pass
                assert answers.read(FLOOD) == bytes([letter]) * FLOOD


HEAD = b"POST /infer/net HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"


def test_a_plain_head_is_taken():
    head = parsed(HEAD + b"Content-Type: image/png\r\n\r\n")

    assert head is not None
    assert (head.path, head.body_bytes, head.keeps_alive) == ("/infer/net", 5, True)
    assert head.headers[b"content-type"] == b"image/png"


@pytest.mark.parametrize(
    "line",
    [
        b"Transfer-Encoding: chunked",
        b"Content-Length: 5",
        b"Content-Length: 6",
        b"Upgrade: websocket\r\nConnection: upgrade",
        b"X-Forwarded-For: 10.0.0.1",
        b"Broken",
        b"Bad\x00Name: 1",
        b"Host: another",
    ],
)
def test_a_head_that_is_not_plain_in_every_respect_is_left_to_uvicorn(line):
    assert parsed(HEAD + line + b"\r\n\r\n") is None


@pytest.mark.parametrize(
    "head",
    [
        b"POST /infer/net HTTP/1.0\r\nContent-Length: 5\r\n\r\n",
        b"POST /infer/net HTTP/1.1\r\n\r\n",
        b"POST /infer/net HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST /infer/net HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
        b"POST /infer/a%20b HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        b"POST  HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
    ],
)
def test_other_requests_are_left_to_uvicorn(head):
    assert parsed(head) is None
