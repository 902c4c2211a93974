"""The Open Inference Protocol over gRPC as tritonclient speaks it, against the running service."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient import http
from tritonclient.grpc import aio, service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.e2e.v2_cases import PNGS, TENSORS, digits_rows, reference
from tests.service import Service

Client = triton.InferenceServerClient
WITHIN_S = 60


@pytest.fixture(scope="module")
def server(service: Service) -> Iterator[Client]:
    with Client(service.grpc) as server:
        yield server


def tensor_input(name: str, tensor: np.ndarray[Any, Any]) -> triton.InferInput:
    made = triton.InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype))
    made.set_data_from_numpy(tensor)
    return made


def refused(call: Callable[[], Any], status: str) -> str:
    with pytest.raises(InferenceServerException) as refusal:
        call()
    assert refusal.value.status() == f"StatusCode.{status}", refusal.value.message()
    return str(refusal.value.message())


def close(answer: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> bool:
    return np.allclose(answer, reference(rows), rtol=1e-4, atol=1e-5)


# --- what is there -----------------------------------------------------------------------------------------------


def test_the_server_tells_that_it_lives_and_what_it_can(server: Client) -> None:
    assert server.is_server_live() and server.is_server_ready()
    metadata = server.get_server_metadata()

    assert metadata.name == "jetforge" and metadata.version
    assert {"statistics", "binary_tensor_data", "classification"} <= set(metadata.extensions)


def test_a_published_engine_is_ready_and_an_unknown_one_is_not(server: Client, digits: dict[str, Any]) -> None:
    assert server.is_model_ready("digits") and server.is_model_ready("digits", "1")
    assert not server.is_model_ready("digits", "99")
    assert not server.is_model_ready("nothing") and not server.is_model_ready("No Such Model")
    assert "newest" in refused(lambda: server.is_model_ready("digits", "newest"), "INVALID_ARGUMENT")


def test_metadata_configuration_and_index_are_those_of_rest(
    server: Client, service: Service, digits: dict[str, Any], versions: str, every_type: str
) -> None:
    with http.InferenceServerClient(service.url.removeprefix("http://")) as rest:
        for name, version in (("digits", ""), (versions, "1"), (every_type, "")):
            metadata = server.get_model_metadata(name, version)
            told = rest.get_model_metadata(name, version)
            assert (metadata.name, metadata.platform, list(metadata.versions)) == (
                told["name"],
                told["platform"],
                told["versions"],
            )
            for ours, theirs in ((metadata.inputs, told["inputs"]), (metadata.outputs, told["outputs"])):
                assert [{"name": x.name, "datatype": x.datatype, "shape": list(x.shape)} for x in ours] == theirs
            config = server.get_model_config(name, version).config
            assert config.max_batch_size == rest.get_model_config(name, version)["max_batch_size"] > 1
            assert config.HasField("dynamic_batching") and config.version_policy.HasField("all")
            assert [list(x.dims) for x in config.input] == [list(x.shape[1:]) for x in metadata.inputs]
            assert [x.name for x in config.output] == [x.name for x in metadata.outputs]
        index = [
            {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
            for entry in server.get_model_repository_index().models
        ]
        assert index == rest.get_model_repository_index() and {"digits", versions} <= {x["name"] for x in index}


def test_an_engine_is_unready_from_its_unload_until_it_is_loaded_or_used(server: Client, versions: str) -> None:
    server.unload_model(versions)
    assert not server.is_model_ready(versions)
    server.load_model(versions)
    assert server.is_model_ready(versions) and not server.is_model_ready(versions, "1")
    server.infer(versions, [tensor_input("x", np.ones((1, 4), np.float32))], model_version="1")
    assert server.is_model_ready(versions, "1")

    assert refused(lambda: server.load_model("nothing"), "NOT_FOUND")
    assert refused(lambda: server.unload_model("nothing"), "NOT_FOUND")
    assert refused(lambda: server.load_model(versions, config="{}"), "UNIMPLEMENTED")


def test_statistics_count_grpc_requests_as_those_of_rest(
    server: Client, client: httpx.Client, digits: dict[str, Any], versions: str
) -> None:
    def told() -> Any:
        return server.get_inference_statistics(versions, "1").model_stats[0]

    before = told()
    for rows in (1, 3, 3):
        server.infer(versions, [tensor_input("x", np.ones((rows, 4), np.float32))], model_version="1")

    after = told()

    assert after.inference_count - before.inference_count == 7
    assert after.execution_count - before.execution_count == 3
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        duration, earlier = getattr(after.inference_stats, part), getattr(before.inference_stats, part)
        assert duration.count - earlier.count == 3 and duration.ns > earlier.ns
    of_rest = client.get(f"/v2/models/{versions}/versions/1/stats").json()["model_stats"][0]
    assert (of_rest["inference_count"], of_rest["last_inference"]) == (after.inference_count, after.last_inference)
    assert {entry.batch_size for entry in after.batch_stats} >= {1, 3}
    assert [entry.version for entry in server.get_inference_statistics(versions).model_stats] == ["2", "1"]
    assert {"digits", versions} <= {entry.name for entry in server.get_inference_statistics().model_stats}


# --- inference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_answers_are_those_of_the_source_model(server: Client, digits: dict[str, Any], algorithm: str | None) -> None:
    rows = digits_rows(5)

    result = server.infer(
        "digits",
        [tensor_input("image", rows)],
        outputs=[triton.InferRequestedOutput("logits")],
        request_id="seven",
        compression_algorithm=algorithm,
        parameters={"camera": "left"},
    )

    assert close(result.as_numpy("logits"), rows)
    answer = result.get_response()
    assert (answer.model_name, answer.model_version, answer.id) == ("digits", "1", "seven")
    assert answer.parameters["camera"].string_param == "left"


def test_every_datatype_comes_through_both_ways(server: Client, every_type: str) -> None:
    result = server.infer(every_type, [tensor_input(name, tensor) for name, tensor in TENSORS.items()])

    for name, tensor in TENSORS.items():
        answer = result.as_numpy(f"{name}_out")
        assert answer.dtype == tensor.dtype
        np.testing.assert_array_equal(answer, tensor)


def test_typed_contents_are_answered_raw_or_typed_as_the_request_says(server: Client, versions: str) -> None:
    request = service_pb2.ModelInferRequest(model_name=versions, model_version="1")
    made = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    made.contents.fp32_contents.extend([1, 2, 3, float("inf")])

    raw = server._client_stub.ModelInfer(request)
    request.parameters["binary_data_output"].bool_param = False
    typed = server._client_stub.ModelInfer(request)

    assert triton.InferResult(raw).as_numpy("y").tolist() == [[2, 4, 6, float("inf")]]
    assert not raw.outputs[0].HasField("contents") and not typed.raw_output_contents
    assert list(typed.outputs[0].contents.fp32_contents) == [2, 4, 6, float("inf")]


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_images_as_bytes_go_through_the_engines_own_recipe(
    server: Client, client: httpx.Client, digits: dict[str, Any], shape: tuple[int, ...]
) -> None:
    result = server.infer("digits", [tensor_input("image", np.array(PNGS, object).reshape(shape))])

    files = [("image", ("a.png", png, "image/png")) for png in PNGS]
    expected = client.post("/infer/digits", files=files, params={"outputs": True}).json()["outputs"]["logits"]["data"]
    np.testing.assert_allclose(result.as_numpy("logits"), expected, rtol=1e-5)
    broken = np.array([PNGS[0], b"no image"], object)
    assert "Image 2 of 2" in refused(
        lambda: server.infer("digits", [tensor_input("image", broken)]), "INVALID_ARGUMENT"
    )


def test_classification_ranks_the_classes_with_their_labels(server: Client, digits: dict[str, Any]) -> None:
    rows = digits_rows(2)
    wanted = triton.InferRequestedOutput("logits", class_count=3)

    ranked = server.infer("digits", [tensor_input("image", rows)], outputs=[wanted]).as_numpy("logits")

    assert ranked.shape == (2, 3)
    for row, texts in zip(reference(rows), ranked, strict=True):
        best = np.argsort(-row)[:3]
        assert [text.decode().split(":")[1:] for text in texts] == [[str(index), str(index)] for index in best]


@pytest.mark.parametrize(("version", "factor", "answered"), [("", 1, "2"), ("1", 2, "1"), ("-1", 1, "2")])
def test_a_version_is_the_one_asked_for_else_the_newest(
    server: Client, versions: str, version: str, factor: int, answered: str
) -> None:
    x = np.array([[1, 2, 3, 4]], np.float32)

    result = server.infer(versions, [tensor_input("x", x)], model_version=version)

    np.testing.assert_array_equal(result.as_numpy("y"), factor * x)
    assert result.get_response().model_version == answered


# --- side by side, and in streams --------------------------------------------------------------------------------


def test_async_requests_of_the_sync_client_are_answered(server: Client, digits: dict[str, Any]) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    for rows in range(1, 17):
        server.async_infer(
            "digits",
            [tensor_input("image", digits_rows(rows))],
            lambda result, error: answers.put(error or result),
            request_id=str(rows),
        )

    for _ in range(16):
        result = answers.get(timeout=WITHIN_S)
        assert close(result.as_numpy("logits"), digits_rows(int(result.get_response().id)))


def test_a_stream_of_the_sync_client_is_answered_in_order_through_failures(
    server: Client, digits: dict[str, Any]
) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    server.start_stream(lambda result, error: answers.put(error or result))
    try:
        for rows in range(1, 9):
            model = "nothing" if rows == 3 else "digits"
            server.async_stream_infer(
                model,
                [tensor_input("image", digits_rows(rows))],
                request_id=str(rows),
                enable_empty_final_response=rows == 8,
            )
        found = [answers.get(timeout=WITHIN_S) for _ in range(8)]
    finally:
        server.stop_stream()

    assert isinstance(found[2], InferenceServerException) and "[engine_not_found]" in found[2].message()
    for rows, result in enumerate(found, 1):
        if rows != 3:
            assert result.get_response().id == str(rows) and close(result.as_numpy("logits"), digits_rows(rows))
    assert found[7].get_response().parameters["triton_final_response"].bool_param
    assert answers.empty()


async def test_the_aio_client_can_do_all_of_it_too(service: Service, digits: dict[str, Any]) -> None:
    async with aio.InferenceServerClient(service.grpc) as server:
        assert (
            await server.is_server_live() and await server.is_server_ready() and await server.is_model_ready("digits")
        )
        assert (await server.get_server_metadata()).extensions
        assert (await server.get_model_metadata("digits")).name == "digits"
        assert (await server.get_model_config("digits")).config.name == "digits"
        assert (await server.get_inference_statistics("digits")).model_stats
        await server.load_model("digits")
        assert "digits" in {entry.name for entry in (await server.get_model_repository_index()).models}

        async def asked(rows: int) -> bool:
            result = await server.infer("digits", [tensor_input("image", digits_rows(rows))])
            return close(result.as_numpy("logits"), digits_rows(rows))

        assert all(await asyncio.gather(*(asked(rows) for rows in range(1, 17))))
        with pytest.raises(InferenceServerException) as refusal:
            await server.infer("nothing", [tensor_input("image", digits_rows(1))])
        assert refusal.value.status() == "StatusCode.NOT_FOUND"


async def test_a_stream_of_the_aio_client_is_answered_in_order(service: Service, digits: dict[str, Any]) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for rows in range(1, 41):
            yield {"model_name": "digits", "inputs": [tensor_input("image", digits_rows(1 + rows % 3))]}

    async with aio.InferenceServerClient(service.grpc) as server:
        found = [answer async for answer in server.stream_infer(requests())]

    assert [error for _, error in found] == [None] * 40
    for rows, (result, _) in enumerate(found, 1):
        assert close(result.as_numpy("logits"), digits_rows(1 + rows % 3))
