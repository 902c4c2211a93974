"""The main job through HTTP: upload, watch, infer."""

from __future__ import annotations

import csv
import io
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest

from tests.e2e.conftest import DIGITS
from tests.service import Service

TESTS = sorted((DIGITS / "test").glob("*.png"))


def true_labels() -> dict[str, str]:
    with (DIGITS / "test" / "labels.csv").open() as file:
        return {row["file"]: row["label"] for row in csv.DictReader(file)}


def heldout() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    with np.load(DIGITS / "heldout.npz") as arrays:
        return (arrays["images"].astype(np.float32) / 255)[:, None], arrays["labels"]


def npy(tensor: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, tensor)
    return file.getvalue()


def test_an_uploaded_model_becomes_an_engine_that_was_compared_with_its_source(digits: dict[str, Any]) -> None:
    assert digits["accuracy"]["outputs"][0]["sqnr_db"] >= 80
    assert digits["accuracy"]["top1_agreement"] == 1.0
    assert digits["accuracy"]["samples"] >= 8
    assert 0 < digits["latency"]["p50_ms"] <= digits["latency"]["p99_ms"]
    assert digits["signature"]["inputs"] == [{"name": "image", "dtype": "float32", "shape": [-1, 1, 8, 8]}]
    assert digits["signature"]["rows_max"] > 1
    assert digits["preprocess"]["color"] == "gray"


def test_test_images_are_recognised_with_their_labels(client: httpx.Client, digits: dict[str, Any]) -> None:
    labels = true_labels()
    right = 0

    for path in TESTS:
        answer = client.post(
            "/infer/digits", content=path.read_bytes(), headers={"Content-Type": "image/png"}, params={"top": 3}
        ).json()
        best = answer["predictions"][0]
        assert len(best) == 3 and best[0]["probability"] >= best[1]["probability"]
        right += best[0]["label"] == labels[path.name]

    assert len(TESTS) >= 20
    assert right >= 0.9 * len(TESTS)


def test_several_images_in_one_request_are_answered_in_their_order(
    client: httpx.Client, digits: dict[str, Any]
) -> None:
    alone = [
        client.post("/infer/digits", content=path.read_bytes(), headers={"Content-Type": "image/png"}).json()
        for path in TESTS[:5]
    ]

    together = client.post(
        "/infer/digits:1", files=[("image", (path.name, path.read_bytes(), "image/png")) for path in TESTS[:5]]
    ).json()

    assert [row[0]["index"] for row in together["predictions"]] == [one["predictions"][0][0]["index"] for one in alone]


def test_the_held_out_third_is_recognised_as_well_as_by_the_source_model(
    client: httpx.Client, digits: dict[str, Any]
) -> None:
    images, labels = heldout()
    source = onnxruntime.InferenceSession(DIGITS / "digits.onnx", providers=["CPUExecutionProvider"])
    reference = source.run(None, {"image": images})[0]

    answers = []
    for first in range(0, len(images), 32):
        answer = client.post(
            "/infer/digits",
            content=npy(images[first : first + 32]),
            headers={"Content-Type": "application/x-npy", "Accept": "application/x-npy"},
        )
        answers.append(np.load(io.BytesIO(answer.content)))
    logits = np.concatenate(answers)

    np.testing.assert_allclose(logits, reference, rtol=1e-3, atol=1e-4)
    assert (logits.argmax(1) == labels).mean() >= 0.97


@pytest.mark.parametrize("kind", ["json", "named json", "npz", "raw", "raw with shape"])
def test_every_tensor_format_gives_the_same_answer(client: httpx.Client, digits: dict[str, Any], kind: str) -> None:
    images, _ = heldout()
    rows = images[:3]
    npz = io.BytesIO()
    np.savez(npz, image=rows)
    body, headers, query = {
        "json": (b"", {}, {}),
        "named json": (b"", {}, {}),
        "npz": (npz.getvalue(), {"Content-Type": "application/x-npz"}, {}),
        "raw": (rows.tobytes(), {"Content-Type": "application/octet-stream"}, {}),
        "raw with shape": (rows.tobytes(), {"Content-Type": "application/octet-stream"}, {"shape": "3x1x8x8"}),
    }[kind]
    content: dict[str, Any] = {"content": body, "headers": headers}
    if kind.endswith("json"):
        lists = rows.tolist()
        content = {"json": {"inputs": {"image": lists} if kind == "named json" else lists}}

    answer = client.post("/infer/digits", params=query, **content).json()
    expected = client.post("/infer/digits", content=npy(rows), headers={"Content-Type": "application/x-npy"}).json()

    name = digits["signature"]["outputs"][0]["name"]
    assert answer["outputs"][name]["shape"] == [3, 10]
    np.testing.assert_allclose(answer["outputs"][name]["data"], expected["outputs"][name]["data"], rtol=1e-5)


def test_outputs_come_as_npz_by_name(client: httpx.Client, digits: dict[str, Any]) -> None:
    images, _ = heldout()

    answer = client.post(
        "/infer/digits",
        content=npy(images[:2]),
        headers={"Content-Type": "application/x-npy", "Accept": "application/x-npz"},
    )

    with np.load(io.BytesIO(answer.content)) as arrays:
        assert {name: arrays[name].shape for name in arrays} == {"logits": (2, 10)}


def test_the_same_build_again_is_finished_at_once_with_the_same_engine(
    service: Service, client: httpx.Client, digits: dict[str, Any]
) -> None:
    again = client.post(
        "/jobs",
        files={"model": (DIGITS / "digits.onnx").read_bytes()},
        data={"name": "digits", "labels": (DIGITS / "labels.txt").read_text()},
    ).json()

    assert (again["state"], again["engine"], again["reused"]) == ("succeeded", digits["ref"], True)


def test_a_stored_model_builds_without_another_upload(
    service: Service, client: httpx.Client, digits: dict[str, Any]
) -> None:
    job = client.post("/jobs", data={"name": "digits-again", "model_id": digits["model"]}).json()

    ended = service.ended(client, job["id"])

    assert ended["engine"] == "digits-again:1"


def test_an_engine_is_warm_after_its_first_request_and_cold_after_unload(
    client: httpx.Client, digits: dict[str, Any]
) -> None:
    client.post("/infer/digits", content=TESTS[0].read_bytes(), headers={"Content-Type": "image/png"})
    warm = client.get("/engines/digits:1").json()["warm"]

    cold = client.post("/engines/digits:1/unload").json()["warm"]
    again = client.post("/engines/digits:1/load").json()["warm"]

    assert warm["state"] == "ready" and warm["requests"] >= 1 and warm["device_bytes"] > 0
    assert cold is None
    assert again["state"] == "ready"


def test_the_engine_file_can_be_downloaded(client: httpx.Client, digits: dict[str, Any]) -> None:
    answer = client.get("/engines/digits:1/file")

    assert len(answer.content) == digits["size_bytes"]
    assert "digits-1.onnx" in answer.headers["content-disposition"]
