from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from scripted_server import JOB, SUCCEEDED, Handler, ScriptedServer, scripted_server, server_sent, stage, unused_port

from app.client import Client, ClientError
from app.sse import server_sent as parsed_stream


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.url, timeout_s=20) as client:
        yield client


def kinds_and_stages(client: Client) -> list[tuple[str, str | None]]:
    return [(event.kind, event.data.get("stage")) for event in client.events("j1", patience_s=5)]


def test_a_refusal_carries_the_services_code_detail_hint_and_status(server, client):
    problem = {"code": "job_not_found", "detail": "There is no job j1.", "hint": "List them.", "status": 404}
    server.on("GET /jobs/j1", lambda handler: handler.send_json(problem, status=404))

    with pytest.raises(ClientError) as caught:
        client.job("j1")

    error = caught.value
    assert (error.code, error.detail, error.hint, error.status) == (
        "job_not_found",
        "There is no job j1.",
        "List them.",
        404,
    )
    assert str(error) == "There is no job j1. [job_not_found] List them."


@pytest.mark.parametrize("status", [200, 502])
def test_an_answer_of_another_program_is_told_from_the_services_own(server, client, status):
    server.on("GET /device", lambda handler: handler.send(status, b"<html>a proxy</html>", "text/html"))

    with pytest.raises(ClientError, match="a proxy") as caught:
        client.device()

    assert (caught.value.code, caught.value.status) == ("unexpected_answer", status)


def test_a_service_that_does_not_run_is_named_with_the_command_that_starts_it():
    url = f"http://127.0.0.1:{unused_port()}"

    with Client(url) as client, pytest.raises(ClientError) as caught:
        client.device()

    assert caught.value.code == "unreachable"
    assert url in caught.value.detail
    assert "jetforge serve" in caught.value.hint


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://[::1"])
def test_an_address_without_http_is_refused(url):
    with pytest.raises(ClientError) as caught:
        Client(url)

    assert caught.value.code == "invalid_address"


def test_a_file_that_is_not_there_is_named_before_anything_is_sent(server, client, tmp_path):
    with pytest.raises(ClientError, match=r"missing\.onnx") as caught:
        client.build(tmp_path / "missing.onnx", "digits")

    assert caught.value.code == "file_unreadable"
    assert server.requests == []


def test_a_build_request_carries_files_name_options_and_key(server, client, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"network bytes")
    (tmp_path / "set.zip").write_bytes(b"archive bytes")
    received: list[tuple[str | None, bytes]] = []

    def take(handler: Handler) -> None:
        received.append((handler.headers["Idempotency-Key"], b"".join(handler.body_bytes())))
        handler.send_json(JOB, status=202)

    server.on("POST /jobs", take)

    job = client.build(
        tmp_path / "net.onnx", "digits", tmp_path / "set.zip", {"precision": "fp32"}, idempotency_key="once"
    )

    key, body = received[0]
    assert job == JOB
    assert key == "once"
    for part in (b'name="precision"\r\n\r\nfp32', b'name="name"\r\n\r\ndigits'):
        assert part in body
    assert b'name="model"; filename="net.onnx"' in body and b"network bytes" in body
    assert b'name="calibration"; filename="set.zip"' in body and b"archive bytes" in body


def test_an_upload_of_50_mib_is_streamed_in_constant_memory_and_counted(server, client, tmp_path):
    size = 50 << 20
    with (tmp_path / "big.onnx").open("wb") as file:
        file.truncate(size)
    received: list[int] = []

    def count(handler: Handler) -> None:
        received.append(sum(len(chunk) for chunk in handler.body_bytes()))
        handler.send_json(JOB, status=202)

    server.on("POST /jobs", count)
    progress: list[tuple[int, int]] = []
    tracemalloc.start()

    client.build(tmp_path / "big.onnx", "big", on_upload=lambda sent, total: progress.append((sent, total)))

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < received[0] < size + 2000
    assert peak_bytes < 5 << 20
    assert progress[-1] == (received[0], received[0])
    assert [sent for sent, _ in progress] == sorted(sent for sent, _ in progress)


def test_a_refusal_in_the_middle_of_an_upload_reaches_the_caller(server, client, tmp_path):
    with (tmp_path / "big.onnx").open("wb") as file:
        file.truncate(50 << 20)
    problem = {"code": "upload_too_large", "detail": "At most 1 MiB.", "hint": "Raise the limit."}

    def refuse(handler: Handler) -> None:
        next(handler.body_bytes())
        handler.send_json(problem, status=413)
        handler.close_connection = True
        for _ in handler.body_bytes():  # what a server does that closes gently
            pass

    server.on("POST /jobs", refuse)

    with pytest.raises(ClientError) as caught:
        client.build(tmp_path / "big.onnx", "big")

    assert (caught.value.code, caught.value.status) == ("upload_too_large", 413)


def test_events_are_told_in_order_up_to_the_end_with_the_job(server, client):
    text = (
        "retry: 2000\n\n: a comment\n\n"
        + stage(1, "inspect")
        + server_sent("warning", seq=2, message="fixed batch [1]\u2028and more")
        + server_sent("log", line="loading")
        + server_sent("end", **SUCCEEDED)
        + stage(9, "never")
    )
    server.on("GET /jobs/j1/events", lambda handler: handler.send_stream(text))

    events = list(client.events("j1"))

    assert [event.kind for event in events] == ["stage", "warning", "log", "end"]
    assert events[1].data["message"] == "fixed batch [1]\u2028and more"
    assert events[2].data == {"line": "loading"}
    assert events[3].data == SUCCEEDED


def test_a_stream_is_read_the_same_wherever_its_bytes_are_cut():
    stream = 'event: log\r\ndata: {"line": "größer\u2028"}\r\n\r\ndata:one\ndata: two\n\ndata: unfinished'.encode()

    whole = list(parsed_stream([stream]))

    assert whole == [("log", '{"line": "größer\u2028"}'), ("message", "one\ntwo")]
    assert list(parsed_stream(stream[at : at + 1] for at in range(len(stream)))) == whole


def test_a_stream_that_breaks_is_opened_again_without_telling_anything_twice(server, client):
    begin = stage(1, "inspect") + server_sent("log", line="first")
    rest = server_sent("log", line="second") + stage(2, "compile") + server_sent("end", **SUCCEEDED)
    cut = "event: stage\ndata: {"
    server.on(
        "GET /jobs/j1/events",
        lambda handler: handler.send_stream(begin + cut),
        lambda handler: handler.send_stream(begin + rest),
    )
    server.on("GET /jobs/j1", {**JOB, "state": "running", "stage": "inspect"})

    events = list(client.events("j1"))

    assert [event.kind for event in events] == ["stage", "log", "job", "log", "stage", "end"]
    assert [event.data["line"] for event in events if event.kind == "log"] == ["first", "second"]


def test_a_job_is_followed_to_its_end_where_no_stream_gets_through(server, client):
    server.on("GET /jobs/j1/events", lambda handler: handler.send(503, b"no streams here", "text/plain"))
    server.on("GET /jobs/j1", {**JOB, "state": "running", "stage": "compile"}, SUCCEEDED)

    assert kinds_and_stages(client) == [("job", "compile"), ("end", "publish")]


def test_an_unknown_job_has_no_events(server, client):
    problem = {"code": "job_not_found", "detail": "There is no job j1.", "hint": "List them."}
    server.on("GET /jobs/j1/events", lambda handler: handler.send_json(problem, status=404))

    with pytest.raises(ClientError, match="no job j1"):
        list(client.events("j1"))

    assert len(server.requests) == 1


def test_a_service_that_stays_away_ends_the_watch_with_an_error():
    url = f"http://127.0.0.1:{unused_port()}"

    with Client(url) as client, pytest.raises(ClientError) as caught:
        list(client.events("j1", patience_s=0.3))

    assert caught.value.code == "unreachable"


def test_a_name_from_outside_cannot_leave_its_place_in_the_path(server, client):
    server.on("GET /engines/..%2Fjobs", {"ref": "x"})

    assert client.engine("../jobs") == {"ref": "x"}


def test_images_are_sent_as_parts_of_one_request(server, client, tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for path in paths:
        path.write_bytes(path.name.encode())
    bodies: list[bytes] = []

    def take(handler: Handler) -> None:
        bodies.append(b"".join(handler.body_bytes()))
        handler.send_json({"engine": "digits:2", "predictions": []})

    server.on("POST /infer/digits:2", take)

    answer = client.infer("digits:2", paths, top=3)

    assert answer["engine"] == "digits:2"
    assert server.requests == ["POST /infer/digits:2?top=3"]
    assert bodies[0].count(b'name="image"; filename=') == 2
    assert b"a.png" in bodies[0] and b"b.jpg" in bodies[0]
