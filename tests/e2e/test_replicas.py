"""Busy connections are answered by other processes, and nobody can tell, but for the time that it takes."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests import networks
from tests.e2e.test_connections import Client, post, tensor, v2
from tests.e2e.test_damaged_engine import file_of
from tests.keys import add_key, revoke_key
from tests.service import Service


class Busy:
    """A connection that asks all the time, from a thread, and checks every answer."""

    def __init__(self, service: Service, factors: tuple[float, ...] = (2,), *headers: str) -> None:
        """
        Args:
            factors: of an input and its right answer; any of them will do.
        """
        self.right = 0
        self.latest: deque[float] = deque(maxlen=100)  # factors of right answers
        self.wrong: list[object] = []
        self.statuses: list[int] = []
        self.ids: list[str] = []
        self.is_lost = False
        self._factors = factors
        self._headers = headers
        self._client = Client(service)
        self._is_over = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    @contextmanager
    def paused(self) -> Iterator[Client]:
        """The connection between two requests, for the test to use."""
        with self._lock:
            yield self._client

    def end(self) -> None:
        self._is_over = True
        self._thread.join()
        self._client.close()

    def _ask(self) -> None:
        value = 0
        while not self._is_over:
            value += 1
            with self._lock:
                try:
                    request = v2(value, "/v2/models/net/infer", *self._headers)
                    status, headers, body = self._client.send(request).answer()
                except (OSError, IndexError, ValueError):
                    self.is_lost = True
                    return
            self.statuses.append(status)
            self.ids.append(headers["x-request-id"])
            if status != 200:
                continue
            found = next((factor for factor in self._factors if body.endswith(tensor(factor * value))), None)
            if found is None:
                self.wrong.append((value, body))
            else:
                self.right += 1
                self.latest.append(found)


@contextmanager
def busy(service: Service, count: int, *headers: str) -> Iterator[list[Busy]]:
    """So many busy connections; some of them are in replicas."""
    clients = [Busy(service, (2,), *headers) for _ in range(count)]
    try:
        service.eventually(lambda: metric(service, "replica_connections") > 0)
        yield clients
    finally:
        for client in clients:
            client.end()


def metric(service: Service, name: str, labels: str = "") -> float:
    with service.client() as client:
        page = client.get("/metrics").text
    found = re.search(rf"^jetforge_{name}{re.escape(labels)} (\S+)$", page, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("replicas") / "data", replicas="2", queue_rows_max="10000000").start()
    try:
        with service.client() as client:
            service.build(client, networks.doubled().SerializeToString(), "net")
            assert client.post("/engines/net/load").status_code == 200
        yield service
    finally:
        service.stop()


def test_every_answer_of_a_busy_connection_is_right_and_counted_once_wherever_it_was_made(service: Service) -> None:
    counted = "http_requests_total", '{method="POST",route="/v2/models/{model}/infer",status="200"}'
    before = metric(service, *counted)

    with busy(service, 6) as clients:
        service.eventually(lambda: metric(service, "replica_connections") >= 3)
        time.sleep(0.5)

    answered = sum(client.right for client in clients)
    assert answered > 0 and all(client.wrong == [] and set(client.statuses) == {200} for client in clients)
    ids = [name for client in clients for name in client.ids]
    assert len(set(ids)) == len(ids)
    service.eventually(lambda: metric(service, *counted) == before + answered)
    with service.client() as client:
        stats = client.get("/v2/models/net/stats").json()["model_stats"][0]
        warm = client.get("/engines/net").json()["warm"]
    assert stats["inference_count"] == warm["rows"] == warm["requests"] == before + answered
    assert warm["leases"] == 0
    service.eventually(lambda: metric(service, "replica_connections") == 0)


def test_the_only_connection_of_a_replica_is_counted_while_it_is_there_and_when_it_has_gone(service: Service) -> None:
    counted = "http_requests_total", '{method="POST",route="/v2/models/{model}/infer",status="200"}'
    before = metric(service, *counted)

    with busy(service, 2) as clients:  # the other one stays
        assert metric(service, "replica_connections") == 1
        there = sum(client.right for client in clients)
        service.eventually(lambda: metric(service, *counted) - before > there)

    answered = sum(client.right for client in clients)
    service.eventually(lambda: metric(service, *counted) == before + answered)
    service.eventually(lambda: metric(service, "replica_connections") == 0)


def test_a_request_that_a_replica_has_no_answer_to_gets_the_one_it_always_gets(service: Service) -> None:
    id_sent = "X-Request-ID: the-same"
    asked = [
        b"GET /engines/net HTTP/1.1\r\nHost: test\r\n\r\n",
        post("/infer/net", b'{"inputs": [[1, 2, 3, 4]]}', "application/json", id_sent),
        post("/infer/net", tensor(3)[1:], "application/octet-stream", id_sent),
        post("/infer/nobody", tensor(3), "application/octet-stream", id_sent),
        v2(3, "/v2/models/net/infer", id_sent, inputs=[]),
        v2(3, "/v2/models/net/versions/9/infer", id_sent),
        post("/infer/net", tensor(3, 100_000), "application/octet-stream", id_sent),
    ]
    for request in asked:
        with busy(service, 4) as clients, closing(Client(service)) as fresh:
            wanted = fresh.send(request).answer()
            found = []
            for client in clients:
                with client.paused() as connection:
                    found.append(connection.send(request).answer())

        assert [answer[0] for answer in found] == [wanted[0]] * 4
        if b"timings_ms" not in wanted[2] and b"last_used" not in wanted[2]:
            assert [answer[2] for answer in found] == [wanted[2]] * 4
        assert all(client.wrong == [] and set(client.statuses) == {200} for client in clients)


def test_requests_in_any_pieces_with_pauses_and_in_a_row_survive_the_way_back(service: Service) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
    with busy(service, 3) as clients:
        for client in clients:
            with client.paused() as connection:
                small, large = v2(7), post("/infer/net", tensor(7, 20_000))
                for request, rows, cut in ((small, 1, 10), (small, 1, len(small) - 20), (large, 20_000, 200_000)):
                    connection.send(request[:cut])
                    time.sleep(1.5)  # longer than a replica waits
                    connection.send(request[cut:])
                    assert connection.answer()[2].endswith(tensor(14, rows))
        for client in clients:
            with client.paused() as connection:
                connection.send(b"".join([v2(1), v2(2), ask, v2(3), post("/infer/net", tensor(4)), ask]))
                bodies = [connection.answer()[2] for _ in range(6)]
                assert [bodies[index][-16:] for index in (0, 1, 3, 4)] == [tensor(2 * value) for value in (1, 2, 3, 4)]
                assert bodies[2] == bodies[5]


def test_an_engine_can_be_unloaded_and_replaced_while_replicas_answer_with_copies_of_it(service: Service) -> None:
    clients = [Busy(service, (2.0, 2.5)) for _ in range(4)]

    def answer_all(factor: float) -> bool:
        return all(len(one.latest) == 100 and set(one.latest) == {factor} for one in clients)

    try:
        service.eventually(lambda: metric(service, "replica_connections") > 0)
        with service.client() as client:
            for _ in range(3):
                assert client.post("/engines/net/unload").status_code == 200
                service.eventually(lambda: metric(service, "replica_connections") > 0)
            service.build(client, networks.doubled(factor=2.5).SerializeToString(), "net")
            service.eventually(lambda: answer_all(2.5))
            service.eventually(lambda: metric(service, "replica_connections") > 0)
            newest = client.get("/engines/net").json()["ref"]
            assert client.delete(f"/engines/{newest}").status_code == 204
            service.eventually(lambda: answer_all(2.0))
    finally:
        for one in clients:
            one.end()
    assert [one.wrong for one in clients] == [[]] * 4
    assert {status for one in clients for status in one.statuses} == {200}


def test_what_an_unloaded_engine_took_is_free_in_the_replicas_as_well(service: Service) -> None:
    with busy(service, 4), service.client() as client:
        alone = client.get("/engines/net").json()["warm"]["device_bytes"]
    with service.client() as client:
        client.post("/engines/net/unload")
        assert client.get("/engines/net").json()["warm"] is None
        client.post("/engines/net/load")
        assert client.get("/engines/net").json()["warm"]["device_bytes"] < alone


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a service that has built the engine."""
    own = Service(tmp_path_factory.mktemp("built") / "data").start()
    try:
        with own.client() as client:
            own.build(client, networks.doubled().SerializeToString(), "net")
    finally:
        own.stop()
    return own.data_dir


@pytest.fixture
def alone(built: Path) -> Iterator[Service]:
    """A service with one replica, for a test that kills what belongs to it."""
    built.with_suffix(".log").unlink()
    own = Service(built, replicas="1", pinned="net").start()
    try:
        yield own
    finally:
        own.kill()


def test_a_replica_that_is_killed_takes_its_connections_with_it_and_is_replaced(alone: Service) -> None:
    with busy(alone, 6) as clients:
        (killed,) = alone.replica_pids()
        os.kill(killed, signal.SIGKILL)
        alone.eventually(lambda: any(client.is_lost for client in clients))
        seen = [client.right for client in clients if not client.is_lost]
        alone.eventually(lambda: sum(c.right for c in clients if not c.is_lost) > sum(seen) + 100)

        alone.eventually(lambda: [pid for pid in alone.replica_pids() if pid != killed])
        alone.eventually(lambda: metric(alone, "replicas") == 1 and metric(alone, "replica_connections") > 0)
        time.sleep(0.5)

    assert all(client.wrong == [] and set(client.statuses) == {200} for client in clients)
    assert any(not client.is_lost for client in clients)
    assert "a replica has ended" in alone.log and "Traceback" not in alone.log
    assert alone.stop() == 0


def test_a_new_replica_that_cannot_load_the_engine_leaves_busy_connections_to_the_others(tmp_path: Path) -> None:
    own = Service(tmp_path / "data", replicas="2").start()
    try:
        with own.client() as client:
            own.build(client, networks.doubled().SerializeToString(), "net")
            client.post("/engines/net/load")
            file = file_of(own, client, "net")
        with busy(own, 8):
            own.eventually(lambda: metric(own, "replica_connections") >= 4)  # of both replicas
        file.unlink()
        before = own.replica_pids()
        os.kill(before[0], signal.SIGKILL)
        own.eventually(lambda: metric(own, "replicas") == 2 and set(own.replica_pids()) - set(before))

        with busy(own, 6) as clients:
            own.eventually(lambda: "a copy of an engine did not load" in own.log)
            own.eventually(lambda: metric(own, "replica_connections") >= 2)

        assert all(client.wrong == [] and set(client.statuses) == {200} for client in clients)
    finally:
        own.kill()


def test_a_replica_that_hangs_is_ended_when_its_engine_is_unloaded_and_is_replaced(alone: Service) -> None:
    with busy(alone, 4), alone.client() as client:
        (hanging,) = alone.replica_pids()
        os.kill(hanging, signal.SIGSTOP)
        assert client.post("/engines/net/unload").status_code == 200
        alone.eventually(lambda: not Path(f"/proc/{hanging}").exists())  # not even as one that nobody has waited for
        alone.eventually(lambda: alone.replica_pids() not in ([], [hanging]))
    assert alone.stop() == 0


def test_without_their_nursery_replicas_end_and_the_service_goes_on(alone: Service) -> None:
    with busy(alone, 4) as clients:
        (nursery,), (replica,) = alone.nursery_pids(), alone.replica_pids()
        os.kill(nursery, signal.SIGKILL)
        alone.eventually(lambda: metric(alone, "replicas") == 0 and metric(alone, "replica_connections") == 0)
        assert not Path(f"/proc/{nursery}").exists() and "the nursery has ended" in alone.log
        alone.eventually(lambda: not Path(f"/proc/{replica}").exists())
        seen = sum(client.right for client in clients)
        alone.eventually(lambda: sum(client.right for client in clients) > seen + 100)
    assert alone.stop() == 0 and "Traceback" not in alone.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_replicas_and_their_nursery_end_with_the_service_however_that_ends(
    alone: Service, number: signal.Signals
) -> None:
    with busy(alone, 4) as clients:
        pids = [*alone.nursery_pids(), *alone.replica_pids()]
        assert len(pids) == 2 and alone.process is not None
        if number == signal.SIGKILL:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)  # they cannot notice anything
        alone.process.send_signal(number)
        status = alone.process.wait(30)

    assert status == (0 if number == signal.SIGTERM else -number)
    assert all(client.wrong == [] and set(client.statuses) == {200} for client in clients)
    alone.eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert "Traceback" not in alone.log


def test_keys_count_for_every_request_wherever_its_connection_is(tmp_path_factory: pytest.TempPathFactory) -> None:
    own = Service(tmp_path_factory.mktemp("keys") / "data", replicas="2", anonymous_roles="read").start()
    try:
        with own.client() as client:
            own.build(client, networks.doubled().SerializeToString(), "net")
            client.post("/engines/net/load")
        watcher = add_key(own.data_dir, "watcher", "read")
        key = add_key(own.data_dir, "robot", "infer")
        with closing(Client(own)) as first:  # a key is known within a second, and those before it
            own.eventually(lambda: first.send(v2(1, "/v2/models/net/infer", f"X-API-Key: {key}")).answer()[0] == 200)
        with busy(own, 4, f"Authorization: Bearer {key}") as clients:
            with clients[0].paused() as connection:
                assert connection.send(v2(1)).answer()[0] == 401
                refused = connection.send(v2(1, "/v2/models/net/infer", f"Authorization: Bearer {watcher}")).answer()
                assert (refused[0], b"role_missing" in refused[2]) == (403, True)
            revoke_key(own.data_dir, "robot")
            refused_all = {401, 429}  # 429: unknown keys were shown too often
            own.eventually(lambda: all(set(one.statuses[-50:]) <= refused_all for one in clients))
            seen = [len(one.statuses) for one in clients]
            own.eventually(lambda: all(len(one.statuses) > 50 + n for one, n in zip(clients, seen, strict=True)))
            assert all(set(one.statuses[n:]) <= refused_all for one, n in zip(clients, seen, strict=True))
    finally:
        assert own.stop() == 0
