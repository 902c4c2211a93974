"""Warm engines of the running service: kept as asked, warm again after a restart, swapped under load."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto

from tests import networks
from tests.service import Service

ROW = np.array([[1, 2, 3, 4]], np.float32)
RAW = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
FACTORS = {"swap:1": 2.0, "swap:2": 1.0}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the engines a and b."""
    service = Service(tmp_path_factory.mktemp("warm") / "data").start()
    try:
        with service.client() as client:
            for name in "ab":
                job = service.build(client, networks.doubled_with_marker(name).SerializeToString(), name)
                assert job["state"] == "succeeded", job
        yield service
    finally:
        service.stop()
    assert "Traceback" not in service.log


def warm(client: httpx.Client) -> dict[str, dict[str, Any]]:
    engines = client.get("/engines").json()["engines"]
    return {engine["ref"]: engine["warm"] for engine in engines if engine["warm"]}


def test_an_engine_is_kept_as_its_load_asks(running: Service) -> None:
    with running.client() as client:
        by_query = client.post("/engines/a/load?keep_alive_s=50").json()["warm"]
        by_body = client.post("/engines/b/load", json={"pin": True, "keep_alive_s": 40}).json()["warm"]
        unpinned = client.post("/engines/b/load?pin=false", json={"pin": True}).json()["warm"]

        assert (by_query["keep_alive_s"], by_query["is_pinned"]) == (50, False)
        assert (by_body["keep_alive_s"], by_body["is_pinned"], by_body["eviction_position"]) == (40, True, None)
        assert (unpinned["keep_alive_s"], unpinned["is_pinned"]) == (40, False)
        assert {ref: state["eviction_position"] for ref, state in warm(client).items()} == {"a:1": 1, "b:1": 2}


@pytest.mark.parametrize(
    "query", ["keep_alive_s=-1", "keep_alive_s=nan", "keep_alive_s=inf", "keep_alive_s=soon", "pin=7"]
)
def test_a_keep_alive_that_is_none_is_refused(running: Service, query: str) -> None:
    with running.client() as client:
        answer = client.post(f"/engines/a/load?{query}")

        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("body", ["[1]", '{"keep_alive_s": -1}', '{"keepalive": 3}', "{"])
def test_a_load_request_that_says_something_else_is_refused(running: Service, body: str) -> None:
    with running.client() as client:
        answer = client.post("/engines/a/load", content=body, headers={"Content-Type": "application/json"})

        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_a_killed_service_has_its_warm_engines_again_and_tells_which_pinned_one_is_missing(running: Service) -> None:
    with running.client() as client:
        client.post("/engines/a/load?keep_alive_s=50")
        client.post("/engines/b/load?pin=false")
    remembered = running.data_dir / "warm.json"
    running.eventually(lambda: remembered.exists() and '"a:1"' in remembered.read_text())
    running.kill()

    again = Service(running.data_dir, pinned="b, gone:3").start()
    try:
        with again.client() as client:
            again.eventually(lambda: not client.get("/readyz").json()["is_starting"])
            states, health = warm(client), client.get("/readyz")
    finally:
        again.stop()
        running.start()

    assert states["a:1"]["keep_alive_s"] == 50 and not states["a:1"]["is_pinned"]
    assert states["b:1"]["is_pinned"]
    assert health.status_code == 200
    (problem,) = health.json()["problems"]
    assert problem.startswith("The pinned engine gone:3 is not loaded")


class Traffic:
    """Clients that ask for the newest version without a pause, and look at every answer."""

    def __init__(self, service: Service, clients: int) -> None:
        self.answered = dict.fromkeys(FACTORS, 0)
        self.wrong: list[str] = []
        self._service = service
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with self._service.client() as client:
            while not self._ends.is_set():
                answer = client.post("/infer/swap", content=ROW.tobytes(), headers=RAW)
                ref = answer.headers.get("x-engine", "")
                right = answer.status_code == 200 and (
                    np.frombuffer(answer.content, np.float32).tolist() == (ROW[0] * FACTORS[ref]).tolist()
                )
                with self._lock:
                    if right:
                        self.answered[ref] += 1
                    else:
                        self.wrong.append(f"{answer.status_code} {ref} {answer.text[:200]}")


def test_a_new_version_takes_over_under_load_without_a_failed_request(running: Service) -> None:
    with running.client() as client:
        running.build(client, networks.doubled_with_marker("swap").SerializeToString(), "swap")
        with Traffic(running, 8) as traffic:
            running.eventually(lambda: traffic.answered["swap:1"] > 50)
            second = networks.same(TensorProto.FLOAT, ("rows", 4)).SerializeToString()
            assert running.build(client, second, "swap")["engine"] == "swap:2"
            running.eventually(lambda: traffic.answered["swap:2"] > 0)
            assert client.post("/engines/swap:1/unload").status_code == 200
            assert client.delete("/engines/swap:1").status_code == 204
            seen = traffic.answered["swap:2"]
            running.eventually(lambda: traffic.answered["swap:2"] > seen + 200)

        assert traffic.wrong == []
        assert {ref for ref in warm(client) if ref.startswith("swap")} == {"swap:2"}
