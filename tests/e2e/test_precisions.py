"""INT8 and auto over HTTP: from the example's files to engines that say how accurate they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

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


def built(service: Service, client: httpx.Client, name: str, **fields: str) -> dict:
    files = {"model": ("digits.onnx", MODEL), "calibration": ("samples.zip", SAMPLES)}
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


def test_auto_reports_its_candidates_in_the_job_and_the_engine(service: Service, client: httpx.Client) -> None:
    job = built(service, client, "best", precision="auto")

    engine = client.get("/engines/best").json()
    assert [one["precision"] for one in job["candidates"]] == ["fp32", "fp16", "int8"]
    assert engine["candidates"] == job["candidates"]
    assert engine["precision"] in ("fp32", "fp16", "int8") and engine["options"]["precision"] == "auto"


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
