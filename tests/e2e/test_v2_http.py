"""The Open Inference Protocol as tritonclient speaks it, against the running service."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tritonclient import http as triton
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests import networks
from tests.e2e.conftest import DIGITS
from tests.service import Service

PNGS = [path.read_bytes() for path in sorted((DIGITS / "test").glob("*.png"))[:3]]
TENSORS: dict[str, np.ndarray[Any, Any]] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 65535]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "FP16": np.array([[-0.5, 0, 65504]], np.float16),
    "FP32": np.array([[-1.5, 0, 3e38]], np.float32),
    "FP64": np.array([[-1.5, 0, 1e308]], np.float64),
}


def built(service: Service, client: httpx.Client, model: Any, name: str, **fields: str) -> str:
    job = service.build(client, model.SerializeToString(), name, **fields)
    assert job["state"] == "succeeded", job
    return str(job["engine"])


@pytest.fixture(scope="module")
def every_type(service: Service) -> str:
    """An engine with an input and an output of every element type; each output is its input."""
    nodes, inputs, outputs = [], [], []
    for name, tensor in TENSORS.items():
        onnx_type = helper.np_dtype_to_tensor_dtype(tensor.dtype)
        nodes.append(helper.make_node("Identity", [name], [f"{name}_out"]))
        inputs.append(networks.value(name, ["rows", 3], onnx_type))
        outputs.append(networks.value(f"{name}_out", ["rows", 3], onnx_type))
    with service.client() as client:
        built(service, client, networks.network(nodes, inputs, outputs), "every-type")
    return "every-type"


@pytest.fixture(scope="module")
def versions(service: Service) -> str:
    """An engine whose version 1 doubles and whose version 2 answers its input as it is."""
    with service.client() as client:
        assert built(service, client, networks.doubled(), "versions") == "versions:1"
        assert built(service, client, networks.same(TensorProto.FLOAT, ("rows", 4)), "versions") == "versions:2"
    return "versions"


@pytest.fixture
def server(service: Service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as server:
        yield server


def tensor_input(name: str, tensor: np.ndarray[Any, Any], *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype))
    made.set_data_from_numpy(tensor, binary_data=binary)
    return made


def digits_rows(rows: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(rows).random((rows, 1, 8, 8), np.float32)


def reference(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    source = onnxruntime.InferenceSession(DIGITS / "digits.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(source.run(None, {"image": rows})[0])


def refused(call: Any, status: int) -> str:
    with pytest.raises(InferenceServerException) as refusal:
        call()
    assert refusal.value.status() == str(status), refusal.value.message()
    message = str(refusal.value.message())
    assert "an exception occurred in the client" not in message
    return message


# --- what is there -----------------------------------------------------------------------------------------------


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


# --- inference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary_output", [True, False])
@pytest.mark.parametrize("binary_input", [True, False])
def test_answers_are_those_of_the_source_model(
    server: triton.InferenceServerClient, digits: dict[str, Any], binary_input: bool, binary_output: bool
) -> None:
    rows = digits_rows(5)

    result = server.infer(
        "digits",
        [tensor_input("image", rows, binary=binary_input)],
        outputs=[triton.InferRequestedOutput("logits", binary_data=binary_output)],
        request_id="seven",
    )

    np.testing.assert_allclose(result.as_numpy("logits"), reference(rows), rtol=1e-4, atol=1e-5)
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "1", "seven")


@pytest.mark.parametrize("binary", [True, False])
def test_every_datatype_comes_through_both_ways(
    server: triton.InferenceServerClient, every_type: str, binary: bool
) -> None:
    inputs = [tensor_input(name, tensor, binary=binary or name == "FP16") for name, tensor in TENSORS.items()]
    outputs = [triton.InferRequestedOutput(f"{name}_out", binary_data=binary or name == "FP16") for name in TENSORS]

    result = server.infer(every_type, inputs, outputs=outputs)

    for name, tensor in TENSORS.items():
        answer = result.as_numpy(f"{name}_out")
        assert answer.dtype == tensor.dtype
        np.testing.assert_array_equal(answer, tensor)


def test_fp16_is_refused_in_json_both_ways(server: triton.InferenceServerClient, every_type: str) -> None:
    inputs = {name: tensor_input(name, tensor) for name, tensor in TENSORS.items()}
    in_json = {**inputs, "FP16": tensor_input("FP16", TENSORS["FP16"], binary=False)}
    out_json = [triton.InferRequestedOutput("FP16_out", binary_data=False)]

    assert "FP16" in refused(lambda: server.infer(every_type, list(in_json.values())), 400)
    assert "FP16" in refused(lambda: server.infer(every_type, list(inputs.values()), outputs=out_json), 400)


def test_bf16_is_refused_with_a_reason(server: triton.InferenceServerClient, digits: dict[str, Any]) -> None:
    made = triton.InferInput("image", [1, 1, 8, 8], "BF16")
    made.set_data_from_numpy(digits_rows(1))

    assert "BF16" in refused(lambda: server.infer("digits", [made]), 400)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_are_compressed_both_ways(
    server: triton.InferenceServerClient, client: httpx.Client, digits: dict[str, Any], algorithm: str
) -> None:
    rows = digits_rows(3)

    result = server.infer(
        "digits",
        [tensor_input("image", rows)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )

    np.testing.assert_allclose(result.as_numpy("logits"), reference(rows), rtol=1e-4, atol=1e-5)
    request = client.build_request(
        "POST",
        "/v2/models/digits/infer",
        content=rows.tobytes(),
        headers={"Accept-Encoding": algorithm, "Inference-Header-Content-Length": "0"},
    )
    answer = client.send(request, stream=True)
    raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == algorithm
    plain = gzip.decompress(raw) if algorithm == "gzip" else zlib.decompress(raw)
    assert json.loads(plain[: int(answer.headers["inference-header-content-length"])])["model_name"] == "digits"


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_images_as_bytes_go_through_the_engines_own_recipe(
    server: triton.InferenceServerClient, client: httpx.Client, digits: dict[str, Any], shape: tuple[int, ...]
) -> None:
    images = np.array(PNGS, object).reshape(shape)

    result = server.infer("digits", [tensor_input("image", images)])

    files = [("image", ("a.png", png, "image/png")) for png in PNGS]
    expected = client.post("/infer/digits", files=files, params={"outputs": True}).json()["outputs"]["logits"]["data"]
    np.testing.assert_allclose(result.as_numpy("logits"), expected, rtol=1e-5)


def test_bytes_that_are_no_image_or_not_wanted_are_refused(
    server: triton.InferenceServerClient, digits: dict[str, Any], versions: str
) -> None:
    broken = np.array([PNGS[0], b"no image"], object)

    assert "Image 2 of 2" in refused(lambda: server.infer("digits", [tensor_input("image", broken)]), 400)
    assert refused(lambda: server.infer(versions, [tensor_input("x", np.array(PNGS[:1], object))]), 400)


@pytest.mark.parametrize("binary", [True, False])
def test_classification_ranks_the_classes_with_their_labels(
    server: triton.InferenceServerClient, digits: dict[str, Any], binary: bool
) -> None:
    rows = digits_rows(2)
    wanted = triton.InferRequestedOutput("logits", binary_data=binary, class_count=3)

    ranked = server.infer("digits", [tensor_input("image", rows)], outputs=[wanted]).as_numpy("logits")

    logits = reference(rows)
    assert ranked.shape == (2, 3)
    for row, texts in zip(logits, ranked, strict=True):
        parts = [(text if isinstance(text, str) else text.decode()).split(":") for text in texts]
        best = np.argsort(-row)[:3]
        assert [int(index) for _, index, _ in parts] == best.tolist()
        assert [label for _, _, label in parts] == [str(index) for index in best]
        np.testing.assert_allclose([float(score) for score, _, _ in parts], row[best], atol=1e-4)


def test_a_raw_body_with_a_header_of_no_length_is_one_tensor(client: httpx.Client, digits: dict[str, Any]) -> None:
    rows = digits_rows(1)

    answer = client.post(
        "/v2/models/digits/infer", content=rows.tobytes(), headers={"Inference-Header-Content-Length": "0"}
    )

    assert answer.headers["content-type"] == "application/octet-stream"
    result = triton.InferResult.from_response_body(
        answer.content, header_length=answer.headers["inference-header-content-length"]
    )
    np.testing.assert_allclose(result.as_numpy("logits"), reference(rows), rtol=1e-4, atol=1e-5)


def test_a_json_request_without_any_header_is_answered_in_json(client: httpx.Client, versions: str) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    request = httpx.Request("POST", f"{client.base_url}/v2/models/{versions}/infer", content=json.dumps(body).encode())
    assert "content-type" not in request.headers

    answer = client.send(request)

    assert answer.status_code == 200 and "inference-header-content-length" not in answer.headers
    assert answer.json()["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]


@pytest.mark.parametrize(("version", "factor", "answered"), [("", 1, "2"), ("1", 2, "1"), ("2", 1, "2")])
def test_a_version_is_the_one_asked_for_else_the_newest(
    server: triton.InferenceServerClient, versions: str, version: str, factor: int, answered: str
) -> None:
    x = np.array([[1, 2, 3, 4]], np.float32)

    result = server.infer(versions, [tensor_input("x", x)], model_version=version)

    np.testing.assert_array_equal(result.as_numpy("y"), factor * x)
    assert result.get_response()["model_version"] == answered


def test_async_requests_of_the_sync_client_are_answered(
    server: triton.InferenceServerClient, digits: dict[str, Any]
) -> None:
    pending = [server.async_infer("digits", [tensor_input("image", digits_rows(rows))]) for rows in (1, 2, 3)]

    for rows, request in zip((1, 2, 3), pending, strict=True):
        logits = request.get_result().as_numpy("logits")
        np.testing.assert_allclose(logits, reference(digits_rows(rows)), rtol=1e-4, atol=1e-5)


async def test_the_aio_client_can_do_all_of_it_too(service: Service, digits: dict[str, Any]) -> None:
    async with aio.InferenceServerClient(service.url.removeprefix("http://")) as server:
        assert (
            await server.is_server_live() and await server.is_server_ready() and await server.is_model_ready("digits")
        )
        assert (await server.get_server_metadata())["extensions"]
        assert (await server.get_model_metadata("digits"))["name"] == "digits"
        assert (await server.get_model_config("digits"))["name"] == "digits"
        assert (await server.get_inference_statistics("digits"))["model_stats"]
        await server.load_model("digits")
        assert {"digits"} <= {entry["name"] for entry in await server.get_model_repository_index()}

        async def asked(rows: int, algorithm: str | None) -> None:
            result = await server.infer(
                "digits",
                [tensor_input("image", digits_rows(rows))],
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
            np.testing.assert_allclose(result.as_numpy("logits"), reference(digits_rows(rows)), rtol=1e-4, atol=1e-5)

        await asyncio.gather(*(asked(rows, [None, "gzip", "deflate"][rows % 3]) for rows in range(1, 17)))
        with pytest.raises(InferenceServerException) as refusal:
            await server.infer("nothing", [tensor_input("image", digits_rows(1))])
        assert refusal.value.status() == "404"


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
