"""The server stays small: what reads and builds networks lives in other processes."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import httpx

from tests.service import ROOT, Service, resident_bytes

DIGITS = ROOT / "examples" / "digits"
RESIDENT_MIB_MAX = 200
LARGE_BYTES, AT_ONCE = (20 << 20) + 1, 6  # not a whole number of rows


def loaded_libraries(pid: int) -> set[str]:
    """Paths of everything that the process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}


def test_a_server_with_a_warm_engine_has_neither_torch_nor_onnx_and_stays_under_200_mib(own_service: Service) -> None:
    own_service.start()
    assert own_service.process is not None
    with own_service.client() as client:
        job = own_service.build(client, (DIGITS / "digits.onnx").read_bytes(), "digits")
        assert job["state"] == "succeeded", job
        client.post("/models", content=(DIGITS / "digits.torchscript.pt").read_bytes())
        image = (DIGITS / "test" / "05_label7.png").read_bytes()
        answer = client.post("/infer/digits", content=image, headers={"Content-Type": "image/png"})
        assert answer.status_code == 200, answer.text

        libraries = loaded_libraries(own_service.process.pid)
        resident_mib = resident_bytes(own_service.process.pid) / 2**20

    assert any("onnxruntime" in path for path in libraries)  # the engine is warm
    assert [path for path in libraries if "/torch/" in path or "/onnx/" in path] == []
    assert resident_mib < RESIDENT_MIB_MAX


def test_what_large_bodies_took_is_given_back_when_no_more_come(own_service: Service) -> None:
    own_service.start()
    assert own_service.process is not None
    pid = own_service.process.pid
    with own_service.client() as client:
        job = own_service.build(client, (DIGITS / "digits.onnx").read_bytes(), "digits")
        assert job["state"] == "succeeded", job
        assert client.post("/infer/digits", content=bytes(4)).status_code == 415  # it has found the engine
        before = resident_bytes(pid)
        url = httpx.URL(own_service.url)
        head = "POST /infer/digits HTTP/1.1\r\nHost: a\r\nContent-Type: application/octet-stream\r\n"
        with ExitStack() as opened:
            clients = [opened.enter_context(socket.create_connection((url.host, url.port), 30)) for _ in range(AT_ONCE)]
            for one in clients:
                one.sendall(f"{head}Content-Length: {LARGE_BYTES}\r\n\r\n".encode() + bytes(LARGE_BYTES - 1))
            own_service.eventually(lambda: resident_bytes(pid) - before > (AT_ONCE - 1) * LARGE_BYTES)
            for one in clients:
                one.sendall(b"0")
                assert b" 422 " in one.recv(1000)

        own_service.eventually(lambda: resident_bytes(pid) - before < LARGE_BYTES)
