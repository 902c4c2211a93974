"""What the gRPC server refuses, survives, and needs to start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, service_pb2, service_pb2_grpc

from tests.e2e.v2_cases import digits_rows
from tests.service import ROOT, Service

Request = service_pb2.ModelInferRequest
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS_FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HALF_A_HEADERS_FRAME = bytes([0, 1, 0, 1, 4, 0, 0, 0, 1]) + bytes(10)


@pytest.fixture(scope="module")
def stub(service: Service) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(service.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def good(**changes: Any) -> Request:
    request = Request(model_name="digits", raw_input_contents=[digits_rows(1).tobytes()], **changes)
    request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
    return request


def shaped(*shape: int) -> Callable[[Request], None]:
    def change(request: Request) -> None:
        request.inputs[0].shape[:] = shape

    return change


def renamed(**fields: str) -> Callable[[Request], None]:
    def change(request: Request) -> None:
        for name, value in fields.items():
            setattr(request if name.startswith("model") else request.inputs[0], name, value)

    return change


def raw(*contents: bytes) -> Callable[[Request], None]:
    def change(request: Request) -> None:
        request.raw_input_contents[:] = contents

    return change


def doubled_input(request: Request) -> None:
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def emptied(request: Request) -> None:
    request.CopyFrom(Request(model_name="digits"))


def shared_memory(request: Request) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"


BAD: dict[str, tuple[Callable[[Request], Any], str]] = {
    "unknown model": (renamed(model_name="nothing"), "NOT_FOUND"),
    "impossible model": (renamed(model_name="No Such/Model"), "NOT_FOUND"),
    "unknown version": (renamed(model_version="99"), "NOT_FOUND"),
    "no version": (renamed(model_version="newest"), "INVALID_ARGUMENT"),
    "unknown input": (renamed(name="other"), "INVALID_ARGUMENT"),
    "unknown output": (lambda request: request.outputs.add(name="nothing"), "INVALID_ARGUMENT"),
    "no input": (emptied, "INVALID_ARGUMENT"),
    "duplicate input": (doubled_input, "INVALID_ARGUMENT"),
    "other datatype": (renamed(datatype="FP64"), "INVALID_ARGUMENT"),
    "bf16": (renamed(datatype="BF16"), "INVALID_ARGUMENT"),
    "raw too short": (raw(bytes(255)), "INVALID_ARGUMENT"),
    "raw too long": (raw(bytes(257)), "INVALID_ARGUMENT"),
    "raw for nobody": (raw(bytes(256), b""), "INVALID_ARGUMENT"),
    "shape that does not fit": (shaped(1, 1, 4, 16), "INVALID_ARGUMENT"),
    "huge shape": (shaped(2**31, 2**31, 8, 8), "INVALID_ARGUMENT"),
    "negative shape": (shaped(-1, -1, 8, 8), "INVALID_ARGUMENT"),
    "no rows": (lambda request: (shaped(0, 1, 8, 8)(request), raw(b"")(request)), "INVALID_ARGUMENT"),
    "shared memory": (shared_memory, "UNIMPLEMENTED"),
    "over the limit": (raw(bytes(257 << 20)), "RESOURCE_EXHAUSTED"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_is_refused_with_its_status_and_the_engine_is_unharmed(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, digits: dict[str, Any], kind: str
) -> None:
    change, status = BAD[kind]
    request = good()
    change(request)

    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(request)

    assert refusal.value.code().name == status, refusal.value.details()
    assert refusal.value.details() and "Exception" not in refusal.value.details()
    answer = stub.ModelInfer(good())
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).shape == (10,)


def test_methods_of_other_extensions_are_unimplemented(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    for method, request in (
        (stub.SystemSharedMemoryStatus, service_pb2.SystemSharedMemoryStatusRequest()),
        (stub.TraceSetting, service_pb2.TraceSettingRequest()),
        (stub.LogSettings, service_pb2.LogSettingsRequest()),
    ):
        with pytest.raises(grpc.RpcError) as refusal:
            method(request)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_peers_that_send_half_of_everything_hold_up_neither_others_nor_the_stop(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", "--no-worker", "--grpc-port", "0").start()
    host, port = service.grpc.rsplit(":", 1)
    peers = [socket.create_connection((host, int(port))) for _ in range(26)]
    try:
        for number, peer in enumerate(peers):
            peer.sendall((PREFACE + SETTINGS_FRAME + HALF_A_HEADERS_FRAME)[: number * 2])
        with InferenceServerClient(service.grpc) as client:
            assert client.is_server_live()
            client.start_stream(lambda result, error: None)  # and never says anything
            assert client.is_server_ready()

            status = service.stop()
    finally:
        for peer in peers:
            peer.close()
        if service.process is not None and service.process.poll() is None:
            service.kill()

    assert status == 0 and "Traceback" not in service.log


# --- the start ---------------------------------------------------------------------------------------------------


def refused_start(data: Path, port: int, **environment: str) -> str:
    """What the command says when it does not start."""
    command = [sys.executable, "-m", "app", "serve", "--port", "0", "--no-worker", "--data-dir", str(data)]
    environment = {**os.environ, **environment, "JETFORGE_GRPC_PORT": str(port)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    return ended.stderr


def test_without_the_extra_a_grpc_port_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ModuleNotFoundError(\"No module named 'grpc'\", name='grpc')")

    said = refused_start(tmp_path / "data", 0, PYTHONPATH=str(tmp_path))

    assert "grpc is not installed" in said and "jetforge[grpc]" in said


def test_a_grpc_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]

        said = refused_start(tmp_path / "data", port)

    assert f"127.0.0.1:{port}" in said and "JETFORGE_GRPC_PORT" in said
