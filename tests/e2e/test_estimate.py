"""How long a build will take: unknown at first, then told from what builds like it took."""

from __future__ import annotations

import json

import httpx
import pytest

from tests import networks
from tests.service import Service

MODEL = networks.doubled_with_marker("estimate").SerializeToString()


def test_a_job_tells_how_long_builds_like_it_took_while_it_waits_and_runs(
    service: Service, client: httpx.Client
) -> None:
    def request(**fields: str) -> dict[str, object]:
        sent = client.post("/jobs", files={"model": MODEL}, data={"name": "estimate", "precision": "fp16", **fields})
        found: dict[str, object] = sent.json()
        return found

    first = request()
    ended = service.ended(client, str(first["id"]))
    took_s = client.get("/engines/estimate").json()["built_in_s"]
    second = request(simplify="false")
    here = f"/jobs/{second['id']}"
    listed = client.get("/jobs", params={"limit": 1}).json()["jobs"][0]
    with client.stream("GET", f"{here}/events") as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    told = [event for event in events if "seq" in event]

    assert (first["elapsed_s"], first["estimated_s"]) == (None, None)
    assert ended["elapsed_s"] == pytest.approx(took_s, abs=30) and ended["elapsed_s"] >= took_s - 0.1
    assert ended["estimated_s"] is None
    assert second["estimated_s"] == listed["estimated_s"] == pytest.approx(took_s, abs=0.06)
    assert {event["estimated_s"] for event in told} >= {second["estimated_s"]}
    elapsed = [event["elapsed_s"] for event in told if event["stage"]]
    assert elapsed == sorted(elapsed) and elapsed[-1] > 0
    assert events[-1]["state"] == "succeeded" and events[-1]["elapsed_s"] >= elapsed[-1] - 0.1
