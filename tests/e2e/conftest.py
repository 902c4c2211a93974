from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from onnx import TensorProto
from tritonclient import http as triton

from tests import networks
from tests.e2e.v2_cases import DIGITS, built, every_type_network
from tests.service import Service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the tests that leave it as they found it."""
    running = Service(tmp_path_factory.mktemp("service") / "data", grpc_port="0").start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    """A service of the test's own, to be killed and started again."""
    running = Service(tmp_path / "data", lost_after_s="5", heartbeat_s="1")
    yield running
    if running.process is not None and running.process.poll() is None:
        running.stop()


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="session")
def digits(service: Service) -> dict[str, Any]:
    """The example's engine, built once."""
    with service.client() as client:
        labels = (DIGITS / "labels.txt").read_text()
        job = service.build(client, (DIGITS / "digits.onnx").read_bytes(), "digits", labels=labels)
        assert job["state"] == "succeeded", job
        engine: dict[str, Any] = client.get(f"/engines/{job['engine']}").json()
        return engine


@pytest.fixture(scope="session")
def every_type(service: Service) -> str:
    """An engine with an input and an output of every element type; each output is its input."""
    with service.client() as client:
        built(service, client, every_type_network(), "every-type")
    return "every-type"


@pytest.fixture(scope="session")
def versions(service: Service) -> str:
    """An engine whose version 1 doubles and whose version 2 answers its input as it is."""
    with service.client() as client:
        assert built(service, client, networks.doubled(), "versions") == "versions:1"
        assert built(service, client, networks.same(TensorProto.FLOAT, ("rows", 4)), "versions") == "versions:2"
    return "versions"


@pytest.fixture
def server(service: Service) -> Iterator[triton.InferenceServerClient]:
    """tritonclient's HTTP client."""
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as server:
        yield server
