"""A large upload streams to disk: the server's memory does not follow it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import Service, resident_bytes

GIB = 1 << 30
LIMIT_BYTES = 64 << 20


@pytest.fixture
def service_without_worker(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "data", "--no-worker").start()
    yield service
    service.stop()


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def one_gib_model() -> Iterator[bytes]:
    """The top level of an ONNX file: ir_version 8, then a graph of 1 GiB."""
    yield b"\x08\x08" + b"\x3a" + varint(GIB)
    piece = bytes(range(256)) * 4096
    for _ in range(GIB // len(piece)):
        yield piece


def multipart(boundary: str) -> Iterator[bytes]:
    yield f'--{boundary}\r\nContent-Disposition: form-data; name="name"\r\n\r\nlarge\r\n'.encode()
    yield f'--{boundary}\r\nContent-Disposition: form-data; name="model"; filename="m.onnx"\r\n\r\n'.encode()
    yield from one_gib_model()
    yield f"\r\n--{boundary}--\r\n".encode()


def test_a_gib_uploaded_grows_the_server_by_at_most_64_mib(service_without_worker: Service) -> None:
    service = service_without_worker
    assert service.process is not None
    pid = service.process.pid
    peak = 0

    def watched() -> Iterator[bytes]:
        nonlocal peak
        for piece in multipart("frontier"):
            peak = max(peak, resident_bytes(pid))
            yield piece

    with service.client() as client:
        client.get("/jobs")
        before = resident_bytes(pid)
        answer = client.post(
            "/jobs", content=watched(), headers={"Content-Type": "multipart/form-data; boundary=frontier"}
        )

    assert answer.status_code == 202, answer.text
    grown = max(peak, resident_bytes(pid)) - before
    print(f"1 GiB upload: the server grew by {grown / (1 << 20):.1f} MiB")
    assert grown <= LIMIT_BYTES
