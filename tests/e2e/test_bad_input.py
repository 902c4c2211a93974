"""Whatever is sent: a 4xx (or a failed job) with code and hint, no traceback, nothing left, others unharmed."""

from __future__ import annotations

import gzip
import io
import pickle
import socket
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests import networks
from tests.e2e.conftest import DIGITS
from tests.service import Service

MODEL = (DIGITS / "digits.onnx").read_bytes()
PNG = next((DIGITS / "test").glob("*.png")).read_bytes()


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["code"] == code, body
    assert body["detail"] and body["hint"] and body["error"]
    assert "Traceback" not in answer.text and "/tmp" not in answer.text
    return body


def stored(service: Service) -> set[str]:
    """Names of uploads, whole or not; the store's lock is neither."""
    files = (service.data_dir / "artefacts").rglob("*")
    return {path.name for path in files if path.is_file() and path.name != "lock"}


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(64 << 20))
    return file.getvalue()


def climbing_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../evil.png", PNG)
    return file.getvalue()


MODELS = {
    "empty": (b"", "empty_upload"),
    "truncated": (MODEL[: len(MODEL) // 2], "model_rejected"),
    "renamed jpeg": (b"\xff\xd8\xff\xe0" + bytes(1000), "model_rejected"),
    "renamed png": (PNG, "model_rejected"),
    "text": (b"hello world\n" * 1000, "model_rejected"),
    "pickle": (pickle.dumps({"weights": [1, 2, 3]}), "model_rejected"),
    "zip": (climbing_zip(), "model_rejected"),
    "random": (np.random.default_rng(0).bytes(10_000), "model_rejected"),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("path", ["/jobs", "/models"])
def test_a_file_that_is_no_network_is_refused_and_not_stored(
    service: Service, client: httpx.Client, path: str, kind: str
) -> None:
    data, code = MODELS[kind]
    before = stored(service)

    answer = client.post(path, files={"model": ("model.onnx", data)}, data={"name": "bad"} if path == "/jobs" else {})

    refused(answer, 422, code)
    assert stored(service) == before


def test_300_mb_of_text_are_refused_and_not_stored(service: Service, client: httpx.Client) -> None:
    before = stored(service)

    answer = client.post("/models", content=(b"lorem ipsum " * 10_000 for _ in range(2600)))

    refused(answer, 422, "model_rejected")
    assert stored(service) == before


@pytest.mark.parametrize(
    ("archive", "code"),
    [
        (b"", "empty_upload"),
        (b"no zip at all", "archive_rejected"),
        (b"images.zip", "archive_rejected"),
        (bomb(), "archive_rejected"),
        (climbing_zip(), "archive_rejected"),
        (bomb()[:-100], "archive_rejected"),
    ],
    ids=["empty", "text", "name", "bomb", "climbing", "truncated"],
)
def test_a_bad_archive_is_refused_and_its_model_not_stored_either(
    service: Service, client: httpx.Client, archive: bytes, code: str
) -> None:
    before = stored(service)

    answer = client.post(
        "/jobs",
        files={"model": networks.doubled_with_marker("archive").SerializeToString(), "calibration": archive},
        data={"name": "bad"},
    )

    refused(answer, 422, code)
    assert stored(service) == before


@pytest.mark.parametrize("name", ["", "a/b", "../etc", "..", ".hidden", "Upper", "a b", "x" * 65, "ü", "a:1", "a\n"])
def test_a_name_that_no_engine_can_have_is_refused(client: httpx.Client, name: str) -> None:
    answer = client.post("/jobs", files={"model": MODEL}, data={"name": name})

    refused(answer, 422, "invalid_request" if name == "" else "invalid_name")


@pytest.mark.parametrize(
    "options",
    [
        {"colour": "red"},
        {"precision": "fp7"},
        {"input_shapes": "1x-3"},
        {"input_shapes": "a:1x2,a:1x3"},
        {"preprocess": "{"},
        {"preprocess": "sepia"},
        {"preprocess": '{"wide": 3}'},
        {"timeout_s": "-1"},
        {"timeout_s": "nan"},
        {"simplify": "perhaps"},
        {"options": "[1]"},
        {"options": "{"},
        {"tolerance": '{"cosine": 3}'},
        {"labels": "[[1]]"},
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused_with_the_known_ones(client: httpx.Client, options: dict[str, str]) -> None:
    body = refused(client.post("/jobs", files={"model": MODEL}, data={"name": "x", **options}), 422, "invalid_option")

    assert next(iter(options)) in body["detail"] + body["hint"]


def test_a_backend_that_is_not_here_is_refused_with_the_way_to_get_it(client: httpx.Client) -> None:
    refused(
        client.post("/jobs", files={"model": MODEL}, data={"name": "x", "backend": "abacus"}), 422, "backend_missing"
    )


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"input_shapes": "1x3x8x8"}, "shapes_contradict"),
        ({"input_shapes": "nothere:1x1x8x8"}, "shapes_contradict"),
        ({"max_shapes": "4x1x9x8"}, "shapes_contradict"),
        ({"labels": "a,b,c"}, "labels_contradict"),
        ({"preprocess": '{"width": 9}'}, "preprocess_contradicts"),
        ({"preprocess": '{"color": "rgb"}'}, "preprocess_contradicts"),
    ],
    ids=str,
)
def test_options_that_contradict_the_model_fail_the_job_with_a_reason(
    service: Service, client: httpx.Client, fields: dict[str, str], code: str
) -> None:
    job = service.build(client, MODEL, "contradicts", **fields)

    assert (job["state"], job["failure"]["code"]) == ("failed", code)
    assert job["failure"]["message"] and job["failure"]["hint"]


def test_a_damaged_network_fails_its_job_and_publishes_nothing(service: Service, client: httpx.Client) -> None:
    damaged = bytearray(MODEL)
    damaged[len(MODEL) // 3 : len(MODEL) // 3 + 200] = bytes(200)

    job = service.build(client, bytes(damaged), "damaged", timeout_s="90")

    assert job["state"] in ("failed", "succeeded")  # the zeros may have hit weights only
    if job["state"] == "failed":
        assert job["failure"]["code"] and job["failure"]["hint"]
        refused(client.get("/engines/damaged"), 404, "engine_not_found")


TENSORS: dict[str, tuple[bytes, str, int, str]] = {
    "not json": (b"{", "application/json", 422, "invalid_request"),
    "nan": (b'{"inputs": [[[[NaN]]]]}', "application/json", 422, "invalid_request"),
    "no inputs": (b"{}", "application/json", 422, "invalid_request"),
    "ragged": (b'{"inputs": [[1, 2], [3]]}', "application/json", 422, "tensor_rejected"),
    "strings": (b'{"inputs": ["a"]}', "application/json", 422, "tensor_rejected"),
    "wrong shape": (b'{"inputs": [[1, 2]]}', "application/json", 422, "tensor_rejected"),
    "unknown input": (b'{"inputs": {"other": [1]}}', "application/json", 422, "tensor_rejected"),
    "too deep": (b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}", "application/json", 422, "tensor_rejected"),
    "overflow": (b'{"inputs": [[[[1e300]]]]}', "application/json", 422, "tensor_rejected"),
    "not npy": (b"hello", "application/x-npy", 422, "invalid_request"),
    "not npz": (b"hello", "application/x-npz", 422, "invalid_request"),
    "raw of odd length": (bytes(255), "application/octet-stream", 422, "tensor_rejected"),
    "empty raw": (b"", "application/octet-stream", 422, "tensor_rejected"),
    "no image": (b"hello", "image/png", 422, "image_rejected"),
    "cut image": (PNG[:40], "image/png", 422, "image_rejected"),
    "empty image": (b"", "image/jpeg", 422, "image_rejected"),
    "foreign type": (b"<a/>", "text/xml", 415, "media_type_unsupported"),
    "multipart without boundary": (b"x", "multipart/form-data", 415, "media_type_unsupported"),
    "multipart cut": (b"--b\r\nContent-Disposition: form", "multipart/form-data; boundary=b", 422, "invalid_request"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_bad_body_is_refused_and_the_engine_unharmed(client: httpx.Client, digits: dict[str, Any], kind: str) -> None:
    body, content_type, status, code = TENSORS[kind]

    answer = client.post("/infer/digits", content=body, headers={"Content-Type": content_type})

    refused(answer, status, code)
    good = client.post("/infer/digits", content=PNG, headers={"Content-Type": "image/png"})
    assert good.status_code == 200


def test_a_compressed_body_is_inflated_or_refused_and_never_taken_for_a_tensor(
    client: httpx.Client, digits: dict[str, Any]
) -> None:
    rows = np.zeros((3, 1, 8, 8), np.float32).tobytes()
    octets = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}

    packed = client.post("/infer/digits", content=gzip.compress(rows), headers={**octets, "Content-Encoding": "gzip"})
    unknown = client.post("/infer/digits", content=rows, headers={**octets, "Content-Encoding": "br"})
    damaged = client.post("/infer/digits", content=rows, headers={**octets, "Content-Encoding": "deflate"})
    upload = client.post("/models", content=gzip.compress(MODEL), headers={"Content-Encoding": "gzip"})

    assert packed.headers["x-tensor-shape"] == "3x10"
    assert packed.content == client.post("/infer/digits", content=rows, headers=octets).content
    refused(unknown, 415, "feature_unsupported")
    refused(damaged, 422, "invalid_request")
    refused(upload, 415, "feature_unsupported")


@pytest.mark.parametrize("body", [b"\xff\xfe", b"[" * 5000 + b"]" * 5000])
def test_json_that_cannot_even_be_parsed_is_refused_like_any_other(
    client: httpx.Client, digits: dict[str, Any], body: bytes
) -> None:
    answer = client.post("/engines/digits/load", content=body, headers={"Content-Type": "application/json"})

    refused(answer, 422, "invalid_request")


def test_a_pickled_array_is_refused(client: httpx.Client, digits: dict[str, Any]) -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)

    answer = client.post("/infer/digits", content=file.getvalue(), headers={"Content-Type": "application/x-npy"})

    refused(answer, 422, "invalid_request")


def test_a_tensor_of_another_dtype_is_refused(client: httpx.Client, digits: dict[str, Any]) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((1, 1, 8, 8), np.float64))

    answer = client.post("/infer/digits", content=file.getvalue(), headers={"Content-Type": "application/x-npy"})

    body = refused(answer, 422, "tensor_rejected")
    assert "float64" in body["detail"] and "float32" in body["detail"]


def test_an_array_that_lies_about_its_size_is_refused(client: httpx.Client, digits: dict[str, Any]) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**31, 2**31, 8, 8)})

    answer = client.post("/infer/digits", content=file.getvalue(), headers={"Content-Type": "application/x-npy"})

    refused(answer, 422, "tensor_rejected")


def test_an_npz_bomb_is_refused(client: httpx.Client, digits: dict[str, Any]) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("image.npy", "w") as entry:
        for _ in range(300):
            entry.write(bytes(1 << 20))

    answer = client.post("/infer/digits", content=file.getvalue(), headers={"Content-Type": "application/x-npz"})

    refused(answer, 422, "invalid_request")


def test_rows_of_nan_are_answered_and_their_neighbours_in_the_batch_unharmed(
    service: Service, digits: dict[str, Any]
) -> None:
    kind = "application/octet-stream"
    headers = {"Content-Type": kind, "Accept": kind}
    good = np.random.default_rng(1).random((1, 1, 8, 8), np.float32)
    odd = [np.full_like(good, value) for value in (np.nan, np.inf, -np.inf, 3e38)]

    def asked(row: Any) -> Any:
        with service.client() as client:
            answers = [client.post("/infer/digits", content=row.tobytes(), headers=headers) for _ in range(20)]
        assert {answer.status_code for answer in answers} == {200}
        return np.stack([np.frombuffer(answer.content, np.float32) for answer in answers])

    alone = asked(good)
    with ThreadPoolExecutor(8) as threads:
        *_, first, second = threads.map(asked, [*odd, good, good])

    np.testing.assert_allclose(np.concatenate([first, second]), np.concatenate([alone, alone]), rtol=1e-4, atol=1e-5)


def test_a_body_over_the_limit_is_refused(client: httpx.Client, digits: dict[str, Any]) -> None:
    def endless() -> Any:
        for _ in range(300):
            yield bytes(1 << 20)

    answer = client.post("/infer/digits", content=endless(), headers={"Content-Type": "application/x-npy"})

    refused(answer, 413, "body_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "route_not_found"),
        ("PUT", "/jobs", 405, "method_not_allowed"),
        ("GET", "/jobs/0000000000000000", 404, "job_not_found"),
        ("GET", "/jobs/..%2f..%2fetc", 404, "route_not_found"),
        ("GET", "/jobs?limit=0", 422, "invalid_request"),
        ("GET", "/jobs?limit=99999", 422, "invalid_request"),
        ("GET", "/jobs?state=odd", 422, "invalid_request"),
        ("GET", "/jobs?after=nope", 422, "invalid_request"),
        ("GET", "/jobs?status=failed", 422, "invalid_request"),
        ("DELETE", "/models/nope?force=true", 422, "invalid_request"),
        ("POST", "/infer/none?topk=1", 422, "invalid_request"),
        ("GET", "/engines/none", 404, "engine_not_found"),
        ("GET", "/engines/none:1", 404, "engine_not_found"),
        ("GET", "/engines/none:x", 422, "invalid_name"),
        ("GET", "/engines/none:99999999999999999999", 422, "invalid_name"),
        ("GET", "/models/sha256:00", 404, "model_not_found"),
        ("GET", "/models/sha256:..", 404, "model_not_found"),
        ("DELETE", "/models/nope", 404, "model_not_found"),
        ("DELETE", "/jobs/nope", 404, "job_not_found"),
        ("POST", "/engines/none/load", 404, "engine_not_found"),
        ("POST", "/infer/none", 415, "media_type_unsupported"),
    ],
)
def test_an_address_that_leads_nowhere_is_a_problem_with_a_hint(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    refused(client.request(method, path), status, code)


def test_a_query_parameter_that_a_route_does_not_have_is_refused_with_those_it_has(
    client: httpx.Client, digits: dict[str, Any]
) -> None:
    image = {"content": PNG, "headers": {"Content-Type": "image/png"}}

    loaded = refused(client.post("/engines/digits/load?keep_alive=60"), 422, "invalid_request")
    inferred = refused(client.post("/infer/digits?topk=1", **image), 422, "invalid_request")

    assert loaded["detail"] == "There is no query parameter 'keep_alive'; did you mean keep_alive_s?"
    assert inferred["hint"] == "POST /infer/{ref} takes top, outputs, shape; /docs describes them."
    other = networks.doubled_with_marker("query").SerializeToString()
    assert client.post("/models?filename=other.onnx", content=other).json()["name"] == "other.onnx"
    assert client.get("/healthz?from=balancer").status_code == 200
    assert client.get("/status?_=1763900000").status_code == 200


def test_the_type_of_a_problem_leads_to_its_paragraph(client: httpx.Client) -> None:
    page, _, code = refused(client.get("/jobs/nope"), 404, "job_not_found")["type"].partition("#")

    shown = client.get(page)

    assert (shown.status_code, shown.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert f'<h3 id="{code}">' in shown.text and "<script" not in shown.text


def test_a_method_that_an_address_does_not_take_is_answered_with_those_it_takes(client: httpx.Client) -> None:
    body = refused(client.put("/jobs"), 405, "method_not_allowed")

    assert body["hint"].startswith("It takes GET, POST;")


def test_json_is_only_told_of_nan_where_it_holds_one(client: httpx.Client, digits: dict[str, Any]) -> None:
    bad, nan = (
        client.post("/infer/digits", content=text, headers={"Content-Type": "application/json"})
        for text in ("{bad", '{"inputs": [NaN]}')
    )

    assert "NaN" not in refused(bad, 422, "invalid_request")["hint"]
    assert "NaN" in refused(nan, 422, "invalid_request")["hint"]


def test_a_request_without_a_model_says_what_is_missing(client: httpx.Client) -> None:
    refused(client.post("/jobs", files={"other": b""}, data={"name": "x"}), 422, "invalid_option")
    refused(client.post("/jobs", data={"name": "x"}), 422, "invalid_request")
    refused(client.post("/jobs", json={"name": "x"}), 415, "media_type_unsupported")
    refused(
        client.post("/jobs", files={"x": (None, "")}, data={"name": "x", "model_id": "sha256:" + "0" * 64}),
        422,
        "invalid_option",
    )


def test_a_client_that_hangs_up_in_the_middle_leaves_nothing(service: Service, client: httpx.Client) -> None:
    before = stored(service)
    url = httpx.URL(service.url)
    with socket.create_connection((url.host, url.port)) as peer:
        head = "POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        head += "Content-Length: 9999999\r\n\r\n"
        part = '--b\r\nContent-Disposition: form-data; name="model"; filename="m.onnx"\r\n\r\n'
        peer.sendall(head.encode() + part.encode() + MODEL + bytes(2 << 20))
        service.eventually(lambda: stored(service) != before)

    service.eventually(lambda: stored(service) == before)
    assert client.get("/healthz").status_code == 200
