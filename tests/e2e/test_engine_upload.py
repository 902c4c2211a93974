"""Engines that were built elsewhere: tried in a process of their own, published, served; or refused with a reason."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import onnx
import onnxruntime as ort
import pytest

from tests import networks
from tests.e2e.conftest import DIGITS
from tests.service import Service

CRASHES, FOREIGN = b"this one crashes", b"this one is foreign"
# In the process that tries engines only: one mark ends it as a broken plugin would, the other is refused as TensorRT
# refuses the engines of other versions.
CRASHING = f"""
import os, signal, sys
if "app.build.appraiser" in sys.orig_argv:
    from app.backends.onnxruntime import OnnxRuntime
    from app.domain.errors import EngineStale
    load = OnnxRuntime.load
    def crash(self, engine):
        if {CRASHES!r} in engine.read_bytes():
            os.kill(os.getpid(), signal.SIGSEGV)
        if {FOREIGN!r} in engine.read_bytes():
            raise EngineStale("The engine was built by TensorRT 8.5.3; this is 10.3.", hint="Build it here.")
        return load(self, engine)
    OnnxRuntime.load = crash
"""
MODEL = (DIGITS / "digits.onnx").read_bytes()
LABELS = (DIGITS / "labels.txt").read_text()
PNG = (DIGITS / "test" / "00_label6.png").read_bytes()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("uploads")
    (folder / "sitecustomize.py").write_text(CRASHING)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    os.environ["PYTHONPATH"], before = path, os.environ.get("PYTHONPATH")
    try:
        running = Service(folder / "data", engine_trial_s="6", engine_memory_mib="8").start()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log


def paired(several: onnx.ModelProto, single: onnx.ModelProto) -> bytes:
    """An engine of two graphs, as builds on ONNX Runtime make it: for runs of several threads and of one."""
    content = single.SerializeToString()
    return bytes(several.SerializeToString() + content + struct.pack("<Q8s", len(content), b"jetpair1"))


def upload(client: httpx.Client, engine: bytes, name: str = "mine", **fields: str) -> httpx.Response:
    return client.post("/engines", files={"file": ("mine.engine", engine)}, data={"name": name, **fields})


def infer(client: httpx.Client, ref: str) -> httpx.Response:
    return client.post(f"/infer/{ref}", content=PNG, headers={"Content-Type": "image/png"})


def stored(service: Service) -> set[Path]:
    objects = service.data_dir / "artefacts"
    scratch = service.data_dir / "trials"
    return {
        path for folder in (objects, scratch) for path in folder.rglob("*") if path.is_file() and path.stat().st_size
    }


def test_an_uploaded_engine_is_published_with_what_the_runtime_told_and_serves_images(
    service: Service, client: httpx.Client
) -> None:
    sent = upload(client, MODEL, "digits", labels=LABELS)
    engine = sent.json()
    again = upload(client, MODEL, "digits", labels=LABELS).json()
    answer = infer(client, "digits").json()

    assert (sent.status_code, sent.headers["location"]) == (201, "/engines/digits:1")
    assert (engine["model"], engine["precision"], engine["backend"]) == (None, "unknown", "onnxruntime")
    assert engine["facts"]["backend_version"] == ort.__version__
    assert engine["signature"]["inputs"][0]["name"] == "image" and engine["signature"]["rows_max"] == 1
    assert engine["accuracy"]["samples"] == 0 and "never compared" in engine["warnings"][0]
    assert engine["latency"]["runs"] > 0 and "model" not in engine["links"]
    assert again["ref"] == "digits:1"
    assert answer["predictions"][0][0]["label"] == "6"
    assert client.get("/engines/digits/file").content == MODEL


def test_a_raw_body_and_the_runtimes_own_format_are_taken(
    service: Service, client: httpx.Client, tmp_path: Path
) -> None:
    setup = ort.SessionOptions()
    setup.optimized_model_filepath = str(tmp_path / "digits.ort")
    setup.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(MODEL, setup, providers=["CPUExecutionProvider"])

    sent = client.post(
        "/engines",
        params={"name": "raw", "preprocess": '{"color": "gray"}'},
        content=(tmp_path / "digits.ort").read_bytes(),
    )

    assert sent.status_code == 201, sent.text
    assert infer(client, "raw").json()["predictions"][0][0]["index"] == 6
    assert sent.json()["preprocess"]["color"] == "gray"


def test_an_engine_of_two_graphs_is_served(client: httpx.Client) -> None:
    sent = upload(client, paired(networks.doubled(), networks.doubled()), "two")

    assert sent.status_code == 201, sent.text
    assert client.post("/infer/two", json={"inputs": {"x": [[1, 2, 3, 4]]}}).json()["outputs"]["y"]["data"] == [
        [2, 4, 6, 8]
    ]


@pytest.mark.parametrize(
    ("engine", "fields", "code", "told"),
    [
        (b"not an engine at all", {}, "engine_rejected", "cannot be read as ONNX"),
        (MODEL[: len(MODEL) // 2], {}, "engine_rejected", ""),
        (b"", {}, "empty_upload", ""),
        (b"yolo.engine", {}, "engine_rejected", "a file's name"),
        (networks.custom_operators().SerializeToString(), {}, "engine_rejected", "acme"),
        (networks.external_weights("/etc/passwd").SerializeToString(), {}, "engine_rejected", "other files"),
        (paired(networks.external_weights("/etc/passwd"), networks.doubled()), {}, "engine_rejected", "other files"),
        (paired(networks.doubled(), networks.external_weights("/etc/passwd")), {}, "engine_rejected", "other files"),
        (paired(networks.doubled(), networks.classifier()), {}, "engine_rejected", "different inputs"),
        (b"ptrt" + bytes(64), {}, "backend_missing", "is a TensorRT engine, and this device has no TensorRT"),
        (b"ftrt" + b"\x9f\x03" * 40, {}, "backend_missing", "is a TensorRT engine, and this device has no TensorRT"),
        ((DIGITS / "digits.torchscript.pt").read_bytes(), {}, "engine_rejected", "a TorchScript network"),
        ((DIGITS / "digits.pt2").read_bytes(), {"backend": "onnxruntime"}, "engine_rejected", "torch.export"),
        ((20).to_bytes(4, "little") + b'{"stride": 32, "a":1}'[:20] + b"ptrt", {}, "backend_missing", "TensorRT"),
        (MODEL, {"labels": "a,b"}, "invalid_option", "10 classes"),
        (MODEL, {"preprocess": "imagenet"}, "invalid_option", "3 values"),
        (MODEL, {"precision": "fp16"}, "invalid_request", "precision"),
        (MODEL, {"name": "../x"}, "invalid_name", ""),
        (MODEL, {"name": ""}, "invalid_request", "name"),
        (MODEL, {"backend": "cuda"}, "backend_missing", "cuda"),
        (networks.doubled_with_marker(CRASHES.decode()).SerializeToString(), {}, "engine_crashes", "SIGSEGV"),
        (networks.doubled_with_marker(FOREIGN.decode()).SerializeToString(), {}, "engine_foreign", "8.5.3"),
        (networks.endless_loop().SerializeToString(), {}, "engine_hangs", "6 s"),
        (networks.doubled_with_marker("x" * (9 << 20)).SerializeToString(), {}, "engine_too_large", "8 MiB"),
    ],
    ids=range(24),
)
def test_what_cannot_be_served_is_refused_with_its_reason_and_leaves_nothing(
    service: Service, client: httpx.Client, engine: bytes, fields: dict[str, str], code: str, told: str
) -> None:
    before = stored(service)

    refused = upload(client, engine, **{"name": "refused", **fields})

    assert refused.json()["code"] == code, refused.text
    assert told in refused.json()["detail"] and refused.json()["hint"]
    assert refused.status_code == (503 if code == "engine_too_large" else 422)
    assert stored(service) == before
    assert client.get("/healthz").status_code == 200


def test_an_upload_without_its_file_names_the_part(client: httpx.Client) -> None:
    refused = client.post("/engines", files={"model": MODEL}, data={"name": "x"})

    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert "'model'" in refused.json()["detail"] and "-F file=@" in refused.json()["hint"]


@pytest.mark.parametrize(
    ("path", "field"), [("/engines", "file"), ("/calibrations", "calibration"), ("/jobs", "model or calibration")]
)
def test_a_file_in_another_field_is_answered_with_the_endpoints_own(
    client: httpx.Client, path: str, field: str
) -> None:
    large = client.post(path, files={"archive": bytes(2 << 20)}, data={"name": "x"}).json()

    assert "'archive' is larger than 1 MiB" in large["detail"] and f"the field {field}:" in large["hint"]


def test_an_uploaded_engine_that_has_become_stale_says_that_nobody_can_build_it_again(
    service: Service, client: httpx.Client
) -> None:
    old = upload(client, networks.doubled().SerializeToString(), "old").json()
    with sqlite3.connect(service.data_dir / "jetforge.db") as connection:
        (text,) = connection.execute("SELECT built FROM engines WHERE name = 'old'").fetchone()
        built = json.loads(text)
        built["facts"]["backend_version"] = "0.0.1"
        connection.execute("UPDATE engines SET built = ? WHERE name = 'old'", (json.dumps(built),))

    stale = client.post(f"/engines/{old['ref']}/load").json()

    assert stale["code"] == "engine_stale" and "uploaded as an engine" in stale["hint"]
    assert client.get("/jobs").json()["jobs"] == []
