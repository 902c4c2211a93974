from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import ROOT, Service

DIGITS = ROOT / "examples" / "digits"


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the tests that leave it as they found it."""
    running = Service(tmp_path_factory.mktemp("service") / "data").start()
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
