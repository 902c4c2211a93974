"""INT8 and auto over HTTP: from the example's files to engines that say how accurate they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import networks
from tests.samples import pictures
from tests.service import BUILD_S, Service

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
MODEL = (DIGITS / "digits.onnx").read_bytes()
SAMPLES = (DIGITS / "calibration.zip").read_bytes()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("precisions") / "data").start()
    yield service
    service.kill()


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def built(
    service: Service,
    client: httpx.Client,
    name: str,
    model: bytes = MODEL,
    samples: bytes = SAMPLES,
    **fields: str,
) -> dict:
    files = {"model": ("model.onnx", model), "calibration": ("samples.zip", samples)}
    asked = client.post("/jobs", files=files, data={"name": name, "backend": "onnxruntime", **fields})
    assert asked.status_code == 202, asked.text
    job = service.ended(client, asked.json()["id"])
    assert job["state"] == "succeeded", job["failure"]
    return job


def test_an_int8_engine_answers_and_tells_what_it_kept(service: Service, client: httpx.Client) -> None:
    built(service, client, "int8", precision="int8")

    engine = client.get("/engines/int8").json()
    assert (engine["precision"], engine["int8_method"], engine["candidates"]) == ("int8", "qdq", [])
    assert engine["accuracy"]["labelled"]["samples"] == 60
    assert engine["accuracy"]["inputs"] == "held-back"
    image = (DIGITS / "test" / "01_label3.png").read_bytes()
    answer = client.post("/infer/int8", content=image, headers={"Content-Type": "image/png"}).json()
    assert answer["predictions"][0][0]["index"] == 3


def test_the_ranges_of_an_int8_build_are_kept_for_the_next(service: Service, client: httpx.Client) -> None:
    built(service, client, "first", precision="int8", simplify="false")
    again = built(service, client, "second", precision="int8", simplify="false", timeout_s="100", tolerance="{}")

    assert not again["reused"]
    assert "calibration skipped" in client.get(f"/jobs/{again['id']}/log").text


@pytest.mark.parametrize("network", ["digits", "resnet18"])
def test_auto_tells_all_candidates_and_publishes_the_fastest_within_tolerance(
    service: Service, client: httpx.Client, tmp_path: Path, network: str
) -> None:
    uploads = {}
    if network == "resnet18":
        model = networks.saved(networks.resnet18(side=64), tmp_path)
        uploads = {"model": model.read_bytes(), "samples": pictures(tmp_path / "a.zip", 40).read_bytes()}

    job = built(service, client, network, **uploads, precision="auto")

    engine = client.get(f"/engines/{network}").json()
    table = engine["candidates"]
    assert job["candidates"] == table and [one["precision"] for one in table] == ["fp32", "fp16", "int8"]
    for one in table:
        assert one["latency"]["p99_ms"] >= one["latency"]["p50_ms"] > 0 and one["latency"]["throughput_per_s"] > 0
        assert one["size_bytes"] > 0 and one["built_in_s"] > 0 and one["accuracy"]["inputs"] == "held-back"
        assert one["accepted"] == (one["reason"] == "")
    accepted = [one for one in table if one["accepted"]]
    best_ms = min(one["latency"]["p50_ms"] for one in accepted)
    fastest = next(one for one in accepted if one["latency"]["p50_ms"] <= best_ms * 1.05)  # what is closer is noise
    assert {"fp32", "fp16"} <= {one["precision"] for one in accepted}
    assert all(engine[name] == fastest[name] for name in ("precision", "size_bytes", "latency", "accuracy"))
    assert engine["options"]["precision"] == "auto"


def test_int8_without_samples_is_refused_before_the_model_is_stored(client: httpx.Client) -> None:
    model = MODEL + b"\x72\x01x"  # the same network with a name: a digest of its own
    before = len(client.get("/models").json()["models"])

    refused = client.post("/jobs", files={"model": model}, data={"name": "x", "precision": "int8"}, timeout=BUILD_S)

    assert (refused.status_code, refused.json()["code"]) == (422, "calibration_required")
    assert len(client.get("/models").json()["models"]) == before


@pytest.mark.parametrize("option", [{"int8_method": "calibrator"}, {"builder": "trtexec"}], ids=str)
def test_what_the_backend_does_not_have_is_refused(client: httpx.Client, option: dict[str, str]) -> None:
    fields = {"name": "x", "backend": "onnxruntime", **option}
    refused = client.post("/jobs", files={"model": MODEL}, data=fields)

    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_option")
