"""What a stored network tells before anything is built from it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import networks
from tests.e2e.conftest import DIGITS
from tests.service import Service
from tests.torch_required import needs_torch

DIGITS_ONNX = (DIGITS / "digits.onnx").read_bytes()


def sent(client: httpx.Client, content: bytes, **params: Any) -> dict[str, Any]:
    answer = client.post("/models", content=content, params={"wait": 110, **params})
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_an_upload_tells_what_is_in_it_and_so_does_the_stored_model(client: httpx.Client) -> None:
    model = sent(client, DIGITS_ONNX)

    assert (model["inspection"], model["failure"]) == ("done", None)
    facts = model["facts"]
    assert facts["inputs"] == [{"name": "image", "dtype": "float32", "shape": [-1, 1, 8, 8]}]
    assert (facts["opset"], facts["parameters"], facts["size_bytes"]) == (17, 9_930, len(DIGITS_ONNX))
    assert facts["operators"]["Conv"] == 2 and facts["refused_by"] == {}
    again = client.get(f"/models/{model['id']}")
    assert again.json() == model
    unchanged = client.get(f"/models/{model['id']}", headers={"If-None-Match": again.headers["ETag"]})
    assert unchanged.status_code == 304


def test_operators_that_a_backend_lacks_are_told_before_a_build(client: httpx.Client, tmp_path: Path) -> None:
    path = networks.saved(networks.custom_operators(), tmp_path)

    assert "acme::Foo" in sent(client, path.read_bytes())["facts"]["refused_by"]["onnxruntime"]


def test_a_network_that_cannot_be_built_is_stored_with_the_failure_of_a_build(
    service: Service, client: httpx.Client
) -> None:
    model = sent(client, networks.external_weights().SerializeToString())
    asked = client.post("/jobs", data={"name": "incomplete", "model_id": model["id"]})
    job = service.ended(client, asked.json()["id"])

    assert (model["inspection"], model["facts"]) == ("failed", None)
    assert model["failure"]["code"] == job["failure"]["code"] == "external_data_missing"
    assert model["failure"]["hint"] == job["failure"]["hint"] != ""


def test_the_same_bytes_are_looked_into_once_even_after_a_restart(own_service: Service) -> None:
    own_service.start()
    with own_service.client() as client:
        model = sent(client, DIGITS_ONNX)
        assert sent(client, DIGITS_ONNX) == model
    own_service.stop()

    own_service.start()
    with own_service.client() as client:
        assert client.get(f"/models/{model['id']}").json() == model

    assert own_service.log.count("model inspected") == 1
    assert list((own_service.data_dir / "scratch").iterdir()) == []


def test_a_file_that_hangs_holds_up_nobody_and_ends_with_the_service(own_service: Service, tmp_path: Path) -> None:
    needs_torch()
    from tests.torch_networks import Endless, scripted, seeded

    own_service.start()
    with own_service.client() as client:
        hanging = sent(client, scripted(seeded(Endless), tmp_path).read_bytes(), wait=0)
        own_service.eventually(lambda: any((own_service.data_dir / "scratch").iterdir()))
        assert sent(client, DIGITS_ONNX)["inspection"] == "done"
        assert client.get(f"/models/{hanging['id']}", params={"wait": 0}).json() == hanging

    assert hanging["inspection"] == "pending" and hanging["facts"] is hanging["failure"] is None
    started = time.monotonic()
    assert own_service.stop() == 0
    assert time.monotonic() - started < 40  # the limit of the inspection is 60
    assert list((own_service.data_dir / "scratch").iterdir()) == []
    assert list((own_service.data_dir / "cache" / "inspections").glob(f"*{hanging['id'][7:]}*")) == []


def test_a_file_that_hangs_is_given_up_at_the_limit(tmp_path: Path) -> None:
    needs_torch()
    from tests.torch_networks import Endless, scripted, seeded

    service = Service(tmp_path / "data", inspect_timeout_s="2").start()
    with service.client() as client:
        model = sent(client, scripted(seeded(Endless), tmp_path).read_bytes())
    service.kill()

    assert (model["inspection"], model["failure"]["code"]) == ("failed", "build_timed_out")


def test_what_is_known_of_a_model_goes_with_it(client: httpx.Client, service: Service) -> None:
    model = sent(client, networks.doubled_with_marker("known").SerializeToString())
    kept = service.data_dir / "cache" / "inspections" / f"{model['id'].removeprefix('sha256:')}.json"
    assert kept.is_file()

    assert client.delete(f"/models/{model['id']}").status_code == 204
    assert not kept.exists()


@pytest.mark.parametrize("wait", ["-1", "301", "nan"])
def test_a_wait_that_makes_no_sense_is_refused(client: httpx.Client, wait: str) -> None:
    assert client.post("/models", content=DIGITS_ONNX, params={"wait": wait}).status_code == 422
