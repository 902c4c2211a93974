"""API keys over gRPC: the same door as over REST."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from tests import networks
from tests.keys import add_key, bearer
from tests.service import Service


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with an engine and two keys, that speaks gRPC."""
    data_dir = tmp_path_factory.mktemp("guarded") / "data"
    open_at_first = Service(data_dir).start()
    with open_at_first.client() as client:
        open_at_first.build(client, networks.doubled().SerializeToString(), "doubled")
    open_at_first.stop()
    keys = {role: add_key(data_dir, role, role) for role in ("infer", "read")}
    running = Service(data_dir, "--no-worker", grpc_port="0").start()
    running.keys = keys  # type: ignore[attr-defined]
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log


@pytest.fixture
def client(guarded: Service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(guarded.grpc) as client:
        yield client


def status(call: Callable[[], object]) -> str:
    try:
        call()
    except InferenceServerException as error:
        return str(error.status())
    return "OK"


def infer(client: triton.InferenceServerClient, headers: dict[str, str] | None) -> np.ndarray:
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    return np.asarray(client.infer("doubled", [tensor], headers=headers).as_numpy("y"))


def test_without_a_key_only_health_is_told(client) -> None:
    assert client.is_server_live()
    assert status(lambda: client.get_model_metadata("doubled")) == "StatusCode.UNAUTHENTICATED"
    assert status(lambda: infer(client, None)) == "StatusCode.UNAUTHENTICATED"


def test_a_key_may_what_its_role_may(guarded, client) -> None:
    may_infer, may_read = bearer(guarded.keys["infer"]), bearer(guarded.keys["read"])
    may_infer, may_read = ({key.lower(): value for key, value in one.items()} for one in (may_infer, may_read))

    assert infer(client, may_infer).tolist() == [[2, 2, 2, 2]]
    assert status(lambda: infer(client, may_read)) == "StatusCode.PERMISSION_DENIED"
    assert client.get_model_metadata("doubled", headers=may_read).name == "doubled"
    assert status(lambda: client.unload_model("doubled", headers=may_read)) == "StatusCode.PERMISSION_DENIED"


def test_a_stream_without_a_key_is_refused(client) -> None:
    told: list[object] = []
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))

    client.start_stream(lambda result, error: told.append(error))
    with contextlib.suppress(InferenceServerException):  # it may be refused before anything is sent
        client.async_stream_infer("doubled", [tensor])
    client.stop_stream()

    assert told and "UNAUTHENTICATED" in str(told[0])


def test_what_changes_something_is_in_the_audit_log(guarded, client) -> None:
    headers = {key.lower(): value for key, value in bearer(guarded.keys["infer"]).items()}

    client.load_model("doubled", headers=headers)

    assert "RepositoryModelLoad" in (Path(guarded.data_dir) / "audit" / "audit.jsonl").read_text()
