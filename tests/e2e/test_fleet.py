"""What an operator of many devices sees of one: metrics, the log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.api.triton_metrics import NAMES
from tests import networks
from tests.receiver import Receiver
from tests.service import ROOT, Service

DOCS = ROOT / "docs"


def model(marker: str) -> bytes:
    """A small network that no other test builds: its engine does not exist yet."""
    return networks.doubled_with_marker(marker).SerializeToString()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Service]:
    running = Service(
        tmp_path_factory.mktemp("fleet") / "data",
        log_requests="true",
        webhook_targets=f"{receiver.url}/jetforge",
        webhook_networks="127.0.0.0/8",
        webhook_secret="0123456789abcdef",
    ).start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log


@pytest.fixture(scope="module")
def engine(service: Service) -> str:
    with service.client() as client:
        job = service.build(client, model("fleet"), "net", simplify="false")
    assert job["state"] == "succeeded", job
    return str(job["engine"])


def infer(client: httpx.Client, ref: str) -> httpx.Response:
    return client.post(f"/infer/{ref}", json={"inputs": np.ones((3, 4)).tolist()})


def infer_by_protocol(client: httpx.Client, name: str) -> httpx.Response:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}
    return client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})


def samples(client: httpx.Client) -> dict[str, float]:
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in page.text.splitlines() if not line.startswith("#")]
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert len(found) == len(lines), "a sample appears twice"
    return found


def test_every_protocol_is_counted_alike(client: httpx.Client, engine: str) -> None:
    assert infer(client, engine).status_code == infer_by_protocol(client, "net").status_code == 200

    before = samples(client)
    infer(client, engine)
    infer_by_protocol(client, "net")
    after = samples(client)

    def grown(name: str) -> float:
        return after[name] - before[name]

    label = f'engine="{engine}"'
    assert grown(f'jetforge_inference_requests_total{{{label},result="success"}}') == 2
    assert grown(f"jetforge_inference_rows_total{{{label}}}") == 4
    assert grown(f"jetforge_inference_seconds_count{{{label}}}") == 2
    assert grown(f'jetforge_inference_stage_seconds_count{{{label},stage="compute"}}') == 2
    assert grown(f'jetforge_inference_stage_seconds_count{{{label},stage="encode"}}') == 2
    assert grown(f'jetforge_inference_batch_rows_bucket{{{label},le="2.0"}}') == 1
    assert grown('nv_inference_request_success{model="net",version="1"}') == 2
    assert grown('jetforge_http_requests_total{method="POST",route="/infer/{ref}",status="200"}') == 1


def test_builds_are_counted_by_result_and_stage(service: Service, client: httpx.Client) -> None:
    before = samples(client)
    service.build(client, model("counted"), "counted", simplify="false")
    after = samples(client)

    for name in (
        'jetforge_builds_total{result="succeeded"}',
        'jetforge_build_stage_seconds_count{stage="compile"}',
        'jetforge_jobs{state="succeeded"}',
    ):
        assert after[name] - before[name] == 1


def test_every_metric_is_described_and_every_described_one_exists(client: httpx.Client) -> None:
    families = set(re.findall(r"^# TYPE (\S+)", client.get("/metrics").text, re.M)) | set(NAMES)
    rows = [line for line in (DOCS / "metrics.md").read_text().splitlines() if line.startswith("| `")]
    described = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])}

    assert described == families


def test_the_dashboard_asks_for_metrics_that_exist(client: httpx.Client) -> None:
    families = dict(re.findall(r"^# TYPE (\S+) (\S+)", client.get("/metrics").text, re.M)) | {
        name: "gauge" for name in NAMES
    }
    histograms = {name for name, kind in families.items() if kind == "histogram"}
    known = (set(families) - histograms) | {
        f"{name}_{end}" for name in histograms for end in ("bucket", "sum", "count")
    }
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]

    asked = {name for text in expressions for name in re.findall(r"\b((?:jetforge|nv|process)_[a-z_]+)", text)}

    assert len(expressions) > 30
    assert asked - known == set()


def test_an_answer_a_problem_and_the_log_name_the_request_alike(service: Service, client: httpx.Client) -> None:
    answer = client.get("/jobs/nope", headers={"X-Request-ID": "asked-by-a-test"})

    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "asked-by-a-test"
    # Written behind the answer.
    line = service.eventually(lambda: [line for line in service.log.splitlines() if "path=/jobs/nope" in line])[0]
    assert "status=404" in line and "job=nope" in line and "request=asked-by-a-test" in line


def test_a_request_without_a_sane_id_gets_one(client: httpx.Client) -> None:
    sent: list[dict[str, Any]] = [{}, {"X-Request-ID": "a b"}, {"X-Request-ID": "x" * 500}]
    made = {client.get("/healthz", headers=headers).headers["x-request-id"] for headers in sent}

    assert len(made) == 3
    assert all(re.fullmatch(r"[0-9a-f]{16}", name) for name in made)


def test_a_poll_of_the_status_is_told_304_until_something_changes(service: Service, client: httpx.Client) -> None:
    first = client.get("/status")
    tag = {"If-None-Match": first.headers["etag"]}

    assert client.get("/status", headers=tag).status_code == 304
    job = service.build(client, model("polled"), "polled", simplify="false")
    changed = client.get("/status", headers=tag)

    assert changed.status_code == 200 and changed.headers["etag"] != first.headers["etag"]
    assert changed.json()["last_jobs"][0]["id"] == job["id"]
    assert {"ref": job["engine"], "precision": "fp32", "state": "cold"} in changed.json()["engines"]
    assert changed.json()["health"] == "ok" and changed.json()["workers"] == 1


def test_the_status_tells_when_an_engine_is_loaded(client: httpx.Client, engine: str) -> None:
    client.post(f"/engines/{engine}/unload")
    cold = client.get("/status")
    client.post(f"/engines/{engine}/load")
    warm = client.get("/status", headers={"If-None-Match": cold.headers["etag"]})

    assert warm.status_code == 200
    states = [{item["ref"]: item["state"] for item in answer.json()["engines"]}[engine] for answer in (cold, warm)]
    assert states == ["cold", "ready"]


def test_a_poll_of_the_jobs_sees_its_own_writes_at_once(service: Service, client: httpx.Client) -> None:
    tag = {"If-None-Match": client.get("/jobs").headers["etag"]}
    assert client.get("/jobs", headers=tag).status_code == 304

    client.post("/models", content=model("a write that the table of jobs is told of"))

    assert client.get("/jobs", headers=tag).status_code == 200


def test_a_query_that_is_refused_is_refused_with_the_right_tag_too(client: httpx.Client) -> None:
    tag = {"If-None-Match": client.get("/jobs").headers["etag"]}

    assert client.get("/jobs", headers=tag).status_code == 304
    assert client.get("/jobs?limit=0", headers=tag).status_code == 422


def told(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Id (0: none) and data of each `job` or `engine` event."""
    seq, kind = 0, ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "id":
            seq = int(value)
        elif field == "event":
            kind = value
        elif field == "data":
            if kind != "sync":
                yield seq, json.loads(value)
            seq = 0


def test_a_reader_of_all_events_follows_builds_and_engines_and_can_come_back(
    service: Service, client: httpx.Client
) -> None:
    with service.client() as follower, follower.stream("GET", "/events") as stream:
        lines = stream.iter_lines()
        assert stream.headers["content-type"].startswith("text/event-stream")
        next(line for line in lines if line.startswith("event: sync"))
        job = service.build(client, model("followed"), "followed", simplify="false")
        client.post("/engines/followed/load")
        seen = []
        for seq, data in told(lines):
            seen.append((seq, data))
            if data.get("action") == "loaded":
                break
    mine = [data for _, data in seen if data.get("job") == job["id"]]
    assert [data["state"] for data in mine if data["kind"] == "state"] == ["queued", "running", "succeeded"]
    stages = [data["stage"] for data in mine if data["kind"] == "stage"]
    assert stages == ["inspect", "simplify", "compile", "verify", "publish"]
    assert {"action": "published", "engine": "followed:1", "seconds": None} in [data for _, data in seen]

    ids = [seq for seq, _ in seen if seq]
    with client.stream("GET", "/events", headers={"Last-Event-ID": str(ids[2])}) as again:
        numbered = (seq for seq, _ in told(again.iter_lines()) if seq)
        missed = [seq for _, seq in zip(ids[3:], numbered, strict=False)]
    assert missed == ids[3:]


def test_a_webhook_is_told_of_the_end_of_its_job_and_the_job_says_so(
    service: Service, client: httpx.Client, receiver: Receiver
) -> None:
    url = f"{receiver.url}/jetforge/ends?token=s3cret"
    job = service.build(client, model("told"), "told", simplify="false", webhook=url)

    def delivered() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"/jobs/{job['id']}").json()["webhook"]
        return found if found["state"] == "delivered" else None

    assert service.eventually(delivered) == {
        "host": receiver.url.removeprefix("http://"),
        "state": "delivered",
        "attempts": 1,
        "status": 204,
        "error": None,
        "next_at": None,
    }
    ((path, _, body),) = receiver.received
    assert path == "/jetforge/ends?token=s3cret"
    assert json.loads(body)["job"]["engine"] == "told:1"
    assert "s3cret" not in client.get(f"/jobs/{job['id']}").text + service.log


def test_a_webhook_to_another_place_is_refused_before_anything_is_stored(client: httpx.Client) -> None:
    before = client.get("/jobs").json()["jobs"]

    for url in ("http://169.254.169.254/latest", "https://evil.example/", "no address"):
        answer = client.post(
            "/jobs", files={"model": ("m.onnx", model("refused"))}, data={"name": "refused", "webhook": url}
        )
        assert (answer.status_code, answer.json()["code"]) == (422, "webhook_refused")

    assert client.get("/jobs").json()["jobs"] == before


def test_an_open_stream_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", "--no-worker").start()
    with service.client() as client, client.stream("GET", "/events") as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("event: sync"))
        assert service.stop() == 0
        assert list(lines)[-1:] == [""]  # ended, not cut off
