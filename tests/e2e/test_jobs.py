"""Watching and steering jobs."""

from __future__ import annotations

import json
import os
from typing import Any

import httpx
import pytest

from tests import networks
from tests.service import Service


def model(marker: str) -> bytes:
    """A small network that no other test builds: its engine does not exist yet."""
    return networks.doubled_with_marker(marker).SerializeToString()


def endless() -> bytes:
    """A network whose run never ends: its build can only be stopped."""
    return networks.endless_loop().SerializeToString()


@pytest.fixture
def stuck(service: Service, client: httpx.Client) -> Any:
    """A job whose build child runs and will not end by itself."""
    job = client.post("/jobs", files={"model": endless()}, data={"name": "stuck", "timeout_s": "300"}).json()
    service.running_child(client, job["id"])
    yield job
    client.delete(f"/jobs/{job['id']}")
    service.ended(client, job["id"])


def test_events_tell_stages_and_log_lines_and_end_with_the_job(service: Service, client: httpx.Client) -> None:
    job = client.post("/jobs", files={"model": model("watched")}, data={"name": "watched"}).json()

    with client.stream("GET", f"/jobs/{job['id']}/events") as stream:
        events = [block.split("\n") for block in stream.read().decode().split("\n\n")]
    kinds = [line.removeprefix("event: ") for block in events for line in block if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for block in events for line in block if line.startswith("data: ")]

    stages = [item["stage"] for item in data if item.get("kind") == "stage"]
    assert stages == ["inspect", "simplify", "compile", "verify", "publish"]
    assert "log" in kinds
    assert kinds[-1] == "end" and data[-1]["state"] == "succeeded"


def test_a_reader_that_reconnects_gets_only_what_it_has_not_seen(service: Service, client: httpx.Client) -> None:
    job = service.build(client, model("resumed"), "resumed")
    whole = client.get(f"/jobs/{job['id']}/events").text
    ids = [int(line[4:]) for line in whole.splitlines() if line.startswith("id: ")]

    rest = client.get(f"/jobs/{job['id']}/events", headers={"Last-Event-ID": str(ids[2])}).text

    assert [int(line[4:]) for line in rest.splitlines() if line.startswith("id: ")] == ids[3:]


@pytest.mark.parametrize("seen", ["9" * 30, "-1", "x", "\xb2"])
def test_an_event_id_that_cannot_be_starts_from_the_beginning(
    service: Service, client: httpx.Client, seen: str
) -> None:
    job = service.build(client, model("odd ids"), "odd-ids")

    events = client.get(f"/jobs/{job['id']}/events", headers={"Last-Event-ID": seen.encode("latin-1")})

    assert events.status_code == 200 and "id: " in events.text


def test_the_log_of_a_job_is_kept(service: Service, client: httpx.Client) -> None:
    job = service.build(client, model("logged"), "logged")

    log = client.get(f"/jobs/{job['id']}/log")

    assert log.status_code == 200 and "attempt 1" in log.text


def test_a_running_job_is_cancelled_and_its_process_gone(
    service: Service, client: httpx.Client, stuck: dict[str, Any]
) -> None:
    child = service.running_child(client, stuck["id"])

    client.delete(f"/jobs/{stuck['id']}")
    ended = service.ended(client, stuck["id"])

    assert ended["state"] == "cancelled"
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_waiting_job_is_cancelled_at_once_and_can_be_retried(
    service: Service, client: httpx.Client, stuck: dict[str, Any]
) -> None:
    waiting = client.post("/jobs", files={"model": model("waiting")}, data={"name": "waiting"}).json()

    cancelled = client.delete(f"/jobs/{waiting['id']}").json()
    retried = client.post(f"/jobs/{waiting['id']}/retry").json()
    client.delete(f"/jobs/{stuck['id']}")
    ended = service.ended(client, waiting["id"])

    assert cancelled["state"] == "cancelled"
    assert retried["state"] == "queued"
    assert ended["state"] == "succeeded"


def test_a_build_that_takes_too_long_is_ended_with_a_reason(service: Service, client: httpx.Client) -> None:
    job = service.build(client, endless(), "slow", timeout_s="3")

    assert job["state"] == "failed"
    assert job["failure"]["code"] == "build_timed_out"
    assert job["failure"]["hint"]


def test_a_long_poll_answers_when_the_job_ends(service: Service, client: httpx.Client) -> None:
    job = client.post("/jobs", files={"model": model("polled")}, data={"name": "polled"}).json()

    answer = client.get(f"/jobs/{job['id']}", params={"wait": 60})

    assert answer.json()["state"] == "succeeded"


def test_polls_that_would_repeat_themselves_are_answered_304(service: Service, client: httpx.Client) -> None:
    job = service.build(client, model("tagged"), "tagged")

    for path in (f"/jobs/{job['id']}", "/jobs", "/engines", f"/engines/{job['engine']}", "/models"):
        tag = client.get(path).headers["etag"]
        again = client.get(path, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b""), path

    before = client.get("/jobs").headers["etag"]
    service.build(client, model("tagged-again"), "tagged-again")
    assert client.get("/jobs", headers={"If-None-Match": before}).status_code == 200


def test_pages_of_jobs_hold_every_job_once(service: Service, client: httpx.Client) -> None:
    for number in range(5):
        client.post("/jobs", files={"model": model(f"paged {number}")}, data={"name": "paged"})

    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = client.get("/jobs", params={"limit": 2, "name": "paged"} | ({"after": after} if after else {})).json()
        seen += [job["id"] for job in page["jobs"]]
        after = page["next"]

    assert len(seen) == len(set(seen)) == 5


def test_an_idempotency_key_makes_a_repeated_request_one_job(service: Service, client: httpx.Client) -> None:
    request: dict[str, Any] = {"files": {"model": model("once")}, "data": {"name": "once"}}

    first = client.post("/jobs", headers={"Idempotency-Key": "k1"}, **request).json()
    again = client.post("/jobs", headers={"Idempotency-Key": "k1"}, **request).json()
    request["data"] = {"name": "other"}
    other = client.post("/jobs", headers={"Idempotency-Key": "k1"}, **request)

    assert first["id"] == again["id"]
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
