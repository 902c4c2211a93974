"""What the Open Inference Protocol over REST tells and refuses, as tritonclient sees it."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient import http as triton

from tests.e2e.v2_cases import digits_rows
from tests.e2e.v2_http import refused, tensor_input
from tests.service import Service


def test_the_server_tells_that_it_lives_and_what_it_can(server: triton.InferenceServerClient) -> None:
    assert server.is_server_live() and server.is_server_ready()
    metadata = server.get_server_metadata()

    assert metadata["name"] == "jetforge" and metadata["version"]
    assert {"statistics", "binary_tensor_data", "classification"} <= set(metadata["extensions"])


def test_a_published_engine_is_ready_before_its_first_request(
    server: triton.InferenceServerClient, digits: dict[str, Any]
) -> None:
    assert server.is_model_ready("digits")
    assert server.is_model_ready("digits", "1")
    assert not server.is_model_ready("digits", "99")
    assert not server.is_model_ready("nothing")
    assert not server.is_model_ready("No Such Model")


def test_metadata_describes_the_native_inputs_and_outputs(
    server: triton.InferenceServerClient, digits: dict[str, Any], versions: str
) -> None:
    metadata = server.get_model_metadata("digits")

    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    assert metadata["platform"] == "onnxruntime_onnx"
    assert server.get_model_metadata(versions, "1")["versions"] == ["1", "2"]


def test_the_configuration_fits_the_metadata(server: triton.InferenceServerClient, every_type: str) -> None:
    metadata = server.get_model_metadata(every_type)

    config = server.get_model_config(every_type, "1")

    assert config["max_batch_size"] > 1
    for key in ("input", "output"):
        described = {entry["name"]: entry for entry in metadata[f"{key}s"]}
        assert [entry["name"] for entry in config[key]] == list(described)
        for entry in config[key]:
            assert [-1, *entry["dims"]] == described[entry["name"]]["shape"]
            assert entry["data_type"] == f"TYPE_{described[entry['name']]['datatype']}"


# --- repository and statistics -----------------------------------------------------------------------------------


def states(server: triton.InferenceServerClient, name: str) -> dict[str, tuple[str, str]]:
    index = server.get_model_repository_index()
    return {entry["version"]: (entry["state"], entry["reason"]) for entry in index if entry["name"] == name}


def test_an_engine_is_unready_from_its_unload_until_it_is_loaded_or_used(
    server: triton.InferenceServerClient, client: httpx.Client, versions: str
) -> None:
    assert states(server, versions) == {"1": ("READY", ""), "2": ("READY", "")}

    server.unload_model(versions)
    assert states(server, versions) == {"1": ("UNAVAILABLE", "unloaded"), "2": ("UNAVAILABLE", "unloaded")}
    assert not server.is_model_ready(versions)
    only_ready = client.post("/v2/repository/index", json={"ready": True}).json()
    assert versions not in {entry["name"] for entry in only_ready}

    server.load_model(versions)
    assert server.is_model_ready(versions)
    assert client.get("/engines/versions:2").json()["warm"]["state"] == "ready"
    server.infer(versions, [tensor_input("x", np.ones((1, 4), np.float32))], model_version="1")
    assert states(server, versions) == {"1": ("READY", ""), "2": ("READY", "")}


def test_what_cannot_be_loaded_says_why(server: triton.InferenceServerClient, digits: dict[str, Any]) -> None:
    assert refused(lambda: server.load_model("nothing"), 404)
    assert refused(lambda: server.unload_model("nothing"), 404)
    assert refused(lambda: server.load_model("digits", config="{}"), 501)


def test_statistics_count_what_was_answered(server: triton.InferenceServerClient, versions: str) -> None:
    before = server.get_inference_statistics(versions, "1")["model_stats"][0]
    for rows in (1, 3, 3):
        server.infer(versions, [tensor_input("x", np.ones((rows, 4), np.float32))], model_version="1")

    after = server.get_inference_statistics(versions, "1")["model_stats"][0]

    assert after["version"] == "1" and after["last_inference"] > 1_600_000_000_000
    assert after["inference_count"] - before["inference_count"] == 7
    assert after["execution_count"] - before["execution_count"] == 3
    counts = {key: after["inference_stats"][key]["count"] - before["inference_stats"][key]["count"] for key in (
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"
    )}  # fmt: skip
    answered = dict.fromkeys(["success", "queue", "compute_input", "compute_infer", "compute_output"], 3)
    assert counts == {**answered, "fail": 0, "cache_hit": 0, "cache_miss": 0}
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    spent = [after["inference_stats"][part]["ns"] for part in parts]
    assert all(type(ns) is int and ns > 0 for ns in spent)
    assert sum(spent) <= after["inference_stats"]["success"]["ns"]
    assert {entry["batch_size"] for entry in after["batch_stats"]} >= {1, 3}


def test_statistics_are_given_of_all_versions_and_of_all_engines(
    server: triton.InferenceServerClient, versions: str, digits: dict[str, Any]
) -> None:
    of_name = {(entry["name"], entry["version"]) for entry in server.get_inference_statistics(versions)["model_stats"]}
    of_all = {(entry["name"], entry["version"]) for entry in server.get_inference_statistics()["model_stats"]}

    assert of_name == {(versions, "1"), (versions, "2")}
    assert of_name | {("digits", "1")} <= of_all


# --- refusals ----------------------------------------------------------------------------------------------------


def test_what_does_not_exist_is_not_found(
    server: triton.InferenceServerClient, client: httpx.Client, digits: dict[str, Any]
) -> None:
    inputs = [tensor_input("image", digits_rows(1))]

    for name, version in (("nothing", ""), ("digits", "99"), ("digits", "0"), ("No Such/Model", ""), ("digits:1", "")):
        refused(lambda name=name, version=version: server.infer(name, inputs, model_version=version), 404)
        refused(lambda name=name, version=version: server.get_model_metadata(name, version), 404)
        refused(lambda name=name, version=version: server.get_inference_statistics(name, version), 404)
    refused(lambda: server.get_model_config("digits", "newest"), 400)
    assert client.get("/v2/nowhere").status_code == 404 and client.get("/v2/nowhere").json()["error"]


def test_extensions_that_are_not_there_are_unsupported(server: triton.InferenceServerClient) -> None:
    refused(server.get_system_shared_memory_status, 501)
    refused(server.unregister_cuda_shared_memory, 501)
    refused(server.get_trace_settings, 501)
    refused(server.get_log_settings, 501)


def test_tensors_that_do_not_fit_are_refused(server: triton.InferenceServerClient, digits: dict[str, Any]) -> None:
    rows = digits_rows(1)
    unknown = [triton.InferRequestedOutput("nothing")]

    refused(lambda: server.infer("digits", [tensor_input("image", rows.astype(np.float64))]), 400)
    refused(lambda: server.infer("digits", [tensor_input("image", rows[:, :, :7])]), 400)
    refused(lambda: server.infer("digits", [tensor_input("image", rows[:0])]), 400)
    refused(lambda: server.infer("digits", [tensor_input("other", rows)]), 400)
    refused(lambda: server.infer("digits", [tensor_input("image", rows)] * 2), 400)
    assert "logits" in refused(lambda: server.infer("digits", [tensor_input("image", rows)], outputs=unknown), 400)


def body_of(size: int, shape: list[int]) -> bytes:
    entry = {"name": "image", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": size}}
    return json.dumps({"inputs": [entry]}).encode()


GOOD = body_of(256, [1, 1, 8, 8])
LENGTH = "Inference-Header-Content-Length"
BAD: dict[str, tuple[bytes, dict[str, str], int]] = {
    "empty": (b"", {}, 400),
    "no json": (b"hello", {}, 400),
    "no inputs": (b"{}", {}, 400),
    "nan": (b'{"inputs": [{"name": "image", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', {}, 400),
    "header longer than the body": (GOOD, {LENGTH: "100000"}, 400),
    "header length negative": (GOOD + bytes(256), {LENGTH: "-1"}, 400),
    "header length no number": (GOOD + bytes(256), {LENGTH: "ten"}, 400),
    "header length too short": (GOOD + bytes(256), {LENGTH: str(len(GOOD) - 1)}, 400),
    "bytes missing": (GOOD + bytes(255), {LENGTH: str(len(GOOD))}, 400),
    "bytes left over": (GOOD + bytes(257), {LENGTH: str(len(GOOD))}, 400),
    "huge shape": (body_of(256, [2**31, 2**31, 8, 8]) + bytes(256), {}, 400),
    "raw of odd length": (bytes(255), {LENGTH: "0"}, 400),
    "raw and empty": (b"", {LENGTH: "0"}, 400),
    "gzip that is none": (b"hello", {"Content-Encoding": "gzip"}, 400),
    "gzip cut off": (gzip.compress(GOOD + bytes(256))[:-9], {"Content-Encoding": "gzip", LENGTH: str(len(GOOD))}, 400),
    "gzip bomb": (gzip.compress(bytes(300 << 20), 1), {"Content-Encoding": "gzip", LENGTH: "0"}, 400),
    "deflate bomb": (zlib.compress(bytes(300 << 20), 1), {"Content-Encoding": "deflate", LENGTH: "0"}, 400),
    "brotli": (b"hello", {"Content-Encoding": "br"}, 501),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_body_is_a_protocol_error_and_the_engine_is_unharmed(
    client: httpx.Client, digits: dict[str, Any], kind: str
) -> None:
    body, headers, status = BAD[kind]

    answer = client.post("/v2/models/digits/infer", content=body, headers=headers)

    assert answer.status_code == status, answer.text
    assert answer.json()["error"] and "content-encoding" not in answer.headers
    good = client.post("/v2/models/digits/infer", content=GOOD + bytes(256), headers={LENGTH: str(len(GOOD))})
    assert good.status_code == 200


def test_a_body_over_the_limit_is_refused(client: httpx.Client, digits: dict[str, Any]) -> None:
    answer = client.post("/v2/models/digits/infer", content=(bytes(1 << 20) for _ in range(300)))

    assert answer.status_code == 400 and answer.json()["code"] == "body_too_large"


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"parameters": {"file:1/model.onnx": "AAAA"}}'])
def test_a_bad_load_request_is_refused(client: httpx.Client, digits: dict[str, Any], body: bytes) -> None:
    answer = client.post("/v2/repository/models/digits/load", content=body)

    assert answer.status_code == (501 if b"file:" in body else 400) and answer.json()["error"]


def test_half_sent_bodies_hold_up_nobody(service: Service, server: triton.InferenceServerClient, digits: Any) -> None:
    url = httpx.URL(service.url)
    head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\n{LENGTH}: 0\r\nContent-Length: 256\r\n\r\n".encode()
    peers = [socket.create_connection((url.host, url.port)) for _ in range(20)]
    try:
        for peer in peers:
            peer.sendall(head + bytes(100))
        assert server.infer("digits", [tensor_input("image", digits_rows(1))]).as_numpy("logits").shape == (1, 10)
    finally:
        for peer in peers:
            peer.close()
    assert server.is_server_live()


def test_only_inference_answers_are_ever_compressed(client: httpx.Client, digits: dict[str, Any]) -> None:
    for path in ("/v2", "/v2/models/digits", "/v2/models/digits/config", "/v2/models/stats", "/v2/models/nothing"):
        answer = client.get(path, headers={"Accept-Encoding": "gzip"})

        assert "content-encoding" not in answer.headers
