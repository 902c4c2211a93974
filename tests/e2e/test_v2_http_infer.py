"""Inference by the Open Inference Protocol over REST, as tritonclient asks it, against the running service."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

from tests.e2e.v2_cases import PNGS, TENSORS, digits_rows, reference
from tests.e2e.v2_http import refused, tensor_input
from tests.service import Service


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
