"""Webhooks: sent signed, again when that failed, never where they may not go, and not lost with a process."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from storage_fixtures import FAILURE, Clocks, publication, source_model

from app.courier import Courier
from app.domain.builds import BuildOptions
from app.domain.webhooks import DeliveryState, WebhookRules, parsed_networks, parsed_targets
from app.storage.database import Database
from app.storage.webhooks import Webhooks
from tests.receiver import Receiver

SECRET = "0123456789abcdef"
STRANGER = "its certificate is not trusted"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


class Desk:
    """A job with a webhook, and a courier over its database."""

    def __init__(self, database: Database, queue: Any, catalogue: Any, clocks: Clocks, receiver: Receiver) -> None:
        self.webhooks = Webhooks(database, now=lambda: clocks.wall)
        self.clocks = clocks
        self._queue, self._catalogue, self._receiver = queue, catalogue, receiver

    def courier(self, networks: str = "127.0.0.0/8", **options: Any) -> Courier:
        url = self._receiver.url
        targets = f"{url}, {url.replace('127.0.0.1', 'localhost')}"
        rules = WebhookRules(parsed_targets(targets), parsed_networks(networks))
        settled = {"device": "jetson-01", "secret": SECRET, "attempts_max": 3, "timeout_s": 10.0, **options}
        return Courier(self.webhooks, self._queue, rules, **settled)

    def job(self, url: str | None = None) -> str:
        model = self._catalogue.add_model(source_model()).digest
        added = self._queue.add("digits", model, None, BuildOptions(), None, url or f"{self._receiver.url}/in?a=b")
        return str(added.id)

    def ended_job(self, url: str | None = None) -> str:
        job = self.job(url)
        self._queue.claim("worker")
        self._queue.succeed(job, "worker", publication())
        return job

    def state(self, job: str) -> tuple[DeliveryState, int, int | None]:
        found = self.webhooks.of(job)
        assert found is not None
        return found.state, found.attempts, found.status


@pytest.fixture
def desk(database, timed, catalogue, clocks, receiver) -> Desk:
    return Desk(database, timed, catalogue, clocks, receiver)


def test_the_end_of_a_job_is_told_and_signed(desk, receiver, timed):
    job = desk.job()
    assert not desk.courier().deliver_next()
    assert desk.state(job)[0] is DeliveryState.WAITING
    timed.claim("worker")
    timed.succeed(job, "worker", publication())

    assert desk.courier().deliver_next()

    ((path, headers, body),) = receiver.received
    told = json.loads(body)
    assert path == "/in?a=b" and headers["host"] == f"127.0.0.1:{receiver.port}"
    assert (told["event"], told["device"]) == ("job.succeeded", "jetson-01")
    assert (told["job"]["id"], told["job"]["engine"]) == (job, "digits:1")
    at, code = (part.partition("=")[2] for part in headers["x-jetforge-signature"].split(","))
    assert code == hmac.new(SECRET.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert int(at) == told["sent_at"]
    assert desk.state(job) == (DeliveryState.DELIVERED, 1, 204)
    assert timed.events(job)[-1].message == "Webhook delivered: answered 204."
    assert not desk.courier().deliver_next()


def test_a_failed_attempt_is_made_again_later_and_tells_the_same_delivery(desk, receiver):
    job = desk.ended_job()
    receiver.statuses = [500]
    desk.courier().deliver_next()
    assert desk.state(job) == (DeliveryState.PENDING, 1, 500)
    assert not desk.courier().deliver_next()

    desk.clocks.pass_s(10)
    desk.courier().deliver_next()

    assert desk.state(job) == (DeliveryState.DELIVERED, 2, 204)
    assert len({headers["x-jetforge-delivery"] for _, headers, _ in receiver.received}) == 1


def test_after_the_last_attempt_it_is_given_up(desk, receiver, timed):
    job = desk.ended_job()
    receiver.statuses = [503, 404, 400]
    for _ in range(4):
        desk.courier().deliver_next()
        desk.clocks.pass_s(4000)

    assert desk.state(job) == (DeliveryState.FAILED, 3, 400)
    assert len(receiver.received) == 3
    assert timed.events(job)[-1].message == "Webhook failed: answered 400."


def test_a_redirect_is_not_followed(desk, receiver):
    job = desk.ended_job()
    receiver.statuses, receiver.location = [307], f"{receiver.url}/elsewhere"

    desk.courier().deliver_next()

    assert desk.state(job) == (DeliveryState.PENDING, 1, 307)
    assert len(receiver.received) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_host_at_a_private_address_is_not_connected_to(desk, receiver, host):
    job = desk.ended_job(f"http://{host}:{receiver.port}/")

    desk.courier(networks="10.0.0.0/8").deliver_next()

    found = desk.webhooks.of(job)
    assert found.error == f"refused: {host} has no address that webhooks may go to"
    assert receiver.received == []


def test_a_host_is_called_by_its_name_at_the_address_that_was_looked_at(desk, receiver):
    job = desk.ended_job(f"http://localhost:{receiver.port}/")

    desk.courier().deliver_next()

    assert desk.state(job)[0] is DeliveryState.DELIVERED
    assert receiver.received[0][1]["host"] == f"localhost:{receiver.port}"


def test_a_target_that_is_allowed_no_more_is_not_connected_to(desk, receiver):
    desk.ended_job(f"http://127.0.0.1:{receiver.port + 1}/")

    assert desk.courier().deliver_next()

    assert receiver.received == []


def test_a_receiver_that_does_not_answer_is_given_up_on_in_time(desk, receiver):
    job = desk.ended_job()
    receiver.held.clear()

    desk.courier(timeout_s=0.3).deliver_next()

    assert desk.webhooks.of(job).error == "no answer within 0.3 s"
    assert desk.state(job)[0] is DeliveryState.PENDING


def test_what_a_courier_took_and_did_not_settle_comes_again(desk, receiver):
    job = desk.ended_job()
    assert desk.webhooks.claim(lease_s=20) is not None  # its process dies here
    assert not desk.courier().deliver_next()

    desk.clocks.pass_s(21)
    assert desk.courier().deliver_next()

    assert desk.state(job)[0] is DeliveryState.DELIVERED


def test_a_clock_that_was_set_back_does_not_put_it_off(desk, receiver):
    job = desk.ended_job()
    desk.clocks.pass_s(-3 * 365 * 86400)

    assert desk.courier().deliver_next()

    assert desk.state(job)[0] is DeliveryState.DELIVERED


def test_a_job_that_is_retried_is_told_of_again_at_its_next_end(desk, receiver, timed):
    job = desk.job()
    timed.claim("worker")
    timed.fail(job, "worker", FAILURE)
    desk.courier().deliver_next()
    desk.clocks.pass_s(5)

    timed.retry(job)
    assert desk.state(job) == (DeliveryState.WAITING, 0, None)
    timed.claim("worker")
    timed.succeed(job, "worker", publication())
    desk.courier().deliver_next()

    bodies = [json.loads(body) for _, _, body in receiver.received]
    assert [body["event"] for body in bodies] == ["job.failed", "job.succeeded"]
    assert bodies[0]["job"]["failure"]["code"] == "compile_failed"
    assert bodies[0]["delivery"] != bodies[1]["delivery"]


def test_an_answer_to_an_attempt_that_came_too_late_changes_nothing(desk, timed, receiver):
    job = desk.job()
    timed.claim("worker")
    timed.fail(job, "worker", FAILURE)
    claimed = desk.webhooks.claim(lease_s=20)
    timed.retry(job)

    desk.webhooks.settle(claimed, 200, None, None)

    assert desk.state(job)[0] is DeliveryState.WAITING


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
@pytest.mark.parametrize(
    ("name", "is_trusted", "error"),
    [("localhost", True, None), ("localhost", False, STRANGER), ("hooks.example", True, STRANGER)],
    ids=["trusted", "of somebody unknown", "of another name"],
)
def test_over_https_the_certificate_of_the_name_is_asked_for(
    database, timed, catalogue, clocks, tmp_path, monkeypatch, name, is_trusted, error
):
    certificate = self_signed(tmp_path, name)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate if is_trusted else self_signed(tmp_path, "other.example")))
    receiver = Receiver(certificate)
    try:
        desk = Desk(database, timed, catalogue, clocks, receiver)
        job = desk.ended_job(f"https://localhost:{receiver.port}/ends")

        desk.courier().deliver_next()

        called = [headers["host"] for _, headers, _ in receiver.received]
        assert desk.webhooks.of(job).error == error
        assert called == ([f"localhost:{receiver.port}"] if error is None else [])
    finally:
        receiver.close()


def self_signed(folder: Path, name: str) -> Path:
    """A certificate of that name and its key, in one file."""
    request = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 2 -subj /CN={name}"
    subprocess.run(
        [*request.split(), "-addext", f"subjectAltName=DNS:{name}"], cwd=folder, check=True, capture_output=True
    )
    made = folder / f"{name}.pem"
    made.write_bytes((folder / "cert").read_bytes() + (folder / "key").read_bytes())
    return made
