from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted_server import (
    ENGINE,
    FAILED,
    JOB,
    SUCCEEDED,
    ScriptedServer,
    accept_build,
    scripted_server,
    server_sent,
    stage,
)

from app.verbs import add_verbs

Run = Callable[..., int]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def run(server: ScriptedServer) -> Run:
    """Run a verb against the scripted server; the result is its exit code."""
    parser = argparse.ArgumentParser()
    add_verbs(parser.add_subparsers(), default_url=server.url)

    def run(*words: Any) -> int:
        args = parser.parse_args([str(word) for word in words])
        return int(args.func(args))

    return run


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"network")
    return path


def test_a_build_tells_its_stages_and_warnings_and_ends_with_accuracy_latency_and_curl(server, run, model, capsys):
    warning = server_sent("warning", seq=2, message="fixed [batch]")
    accept_build(server, stage(1, "inspect"), warning, stage(3, "compile"), server_sent("end", **SUCCEEDED))

    status = run("build", model, "--name", "digits")

    told = capsys.readouterr()
    assert status == 0
    assert told.err.index("inspect") < told.err.index("warning: fixed [batch]") < told.err.index("compile")
    for shown in ("131.2", "99.25%", "0.125 ms", "0.375 ms", "81,23", "40.8 kB", "1.5 s"):
        assert shown in told.out
    curl = f"curl --data-binary @image.png -H 'Content-Type: image/png' {server.url}/infer/digits"
    assert curl in told.out


def test_a_build_says_once_how_long_builds_like_it_took(server, run, model, capsys):
    known = server_sent("stage", seq=1, stage="inspect", message="", estimated_s=41.7)
    accept_build(server, known, known, server_sent("end", **SUCCEEDED))

    run("build", model, "--name", "digits")

    assert capsys.readouterr().err.count("builds like this one took about 42 s") == 1


def test_a_build_sends_labels_and_options_as_the_service_reads_them(server, run, model, tmp_path):
    (tmp_path / "labels.txt").write_text("tench, Tinca tinca\ngoldfish\n\n")
    bodies = accept_build(server, server_sent("end", **SUCCEEDED))

    run(
        *("build", model, "--name", "digits", "--labels", tmp_path / "labels.txt", "--precision", "fp32"),
        *("--preprocess", '{"color": "bgr"}', "--option", "max_shapes=image:8x1x8x8", "--option", "simplify=false"),
    )

    for name, value in (
        ("labels", '["tench, Tinca tinca", "goldfish"]'),
        ("precision", "fp32"),
        ("preprocess", '{"color": "bgr"}'),
        ("max_shapes", "image:8x1x8x8"),
        ("simplify", "false"),
    ):
        assert f'name="{name}"\r\n\r\n{value}\r\n'.encode() in bodies[0]


def test_a_folder_in_place_of_a_file_is_refused_with_how_to_zip_it(server, run, model, tmp_path, capsys):
    (tmp_path / "my photos").mkdir()

    status = run("build", model, "--name", "digits", "--calibration", tmp_path / "my photos")

    told = capsys.readouterr().err
    assert status == 1
    assert "is a folder" in told and "[file_unreadable]" in told
    assert f"python3 -m zipfile -c 'my photos.zip' '{tmp_path / 'my photos'}'" in told
    assert server.requests == []


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("GET /engines lists the engines.", "jetforge engines lists the engines."),
        ("It is being built again: GET /jobs/j1. Then …", "It is being built again: jetforge jobs j1. Then …"),
        ("See GET /jobs/{id}/log.", "See GET /jobs/{id}/log."),
        ("Load it: POST /engines/digits.a:1/load.", "Load it: jetforge engines digits.a:1 --load."),
        ("GET /device shows all.", "jetforge doctor shows all."),
        ("-F calibration=@images.zip with images", "--calibration images.zip with images"),
        ("Add -F input_shapes=x:1x3", "Add --option input_shapes=x:1x3"),
    ],
)
def test_a_hint_of_the_service_names_commands_where_there_are_some(server, run, capsys, sent, told):
    problem = {"code": "some_code", "detail": "It cannot be.", "hint": sent}
    server.on("GET /engines/digits", lambda handler: handler.send_json(problem, status=404))

    run("engines", "digits")

    assert told in capsys.readouterr().err


def test_a_failed_build_shows_the_reason_the_remedy_and_the_end_of_the_log(server, run, model, capsys):
    accept_build(server, stage(1, "inspect"), server_sent("end", **FAILED))
    log = "".join(f"line {number}.\n" for number in range(100))
    server.on("GET /jobs/j1/log", lambda handler: handler.send(200, log.encode(), "text/plain"))

    status = run("build", model, "--name", "digits")

    told = capsys.readouterr().out
    assert status == 1
    assert "Node 3 has no input. [model_invalid]" in told
    assert "Export it again." in told
    assert "line 99." in told and "line 80." in told
    assert "line 79." not in told


def test_a_build_that_is_not_awaited_shows_its_job(server, run, model, capsys):
    accept_build(server)

    status = run("build", model, "--name", "digits", "--no-wait")

    assert status == 0
    assert "j1" in capsys.readouterr().out
    assert server.requests == ["POST /jobs"]


def test_a_reused_engine_is_told_as_such(server, run, model, capsys):
    accept_build(server, server_sent("end", **{**SUCCEEDED, "reused": True}))

    run("build", model, "--name", "digits")

    told = capsys.readouterr().out
    assert "Nothing was built" in told
    assert "warning: The batch axis is fixed." in told


@pytest.mark.parametrize(
    "words",
    [
        ("build", "MODEL", "--name", "digits"),
        ("jobs",),
        ("jobs", "j1"),
        ("jobs", "j1", "--log"),
        ("jobs", "j1", "--cancel"),
        ("jobs", "j1", "--retry"),
        ("jobs", "j1", "--watch"),
        ("jobs", "--log"),
        ("engines",),
        ("engines", "digits:1"),
        ("engines", "digits:1", "--load"),
        ("engines", "digits:1", "--unload"),
        ("engines", "digits:1", "--delete"),
        ("engines", "unknown"),
        ("infer", "digits:1", "MODEL"),
        ("doctor",),
    ],
    ids=" ".join,
)
def test_with_json_every_verb_prints_one_document_and_nothing_else(server, run, model, capsys, words):
    accept_build(server, stage(1, "inspect"), server_sent("end", **SUCCEEDED))
    server.on("GET /jobs", {"jobs": [JOB], "next": None})
    for request in ("GET /jobs/j1", "DELETE /jobs/j1", "POST /jobs/j1/retry"):
        server.on(request, JOB)
    server.on("GET /jobs/j1/log", lambda handler: handler.send(200, b"text\n", "text/plain"))
    server.on("GET /engines", {"engines": [ENGINE], "next": None, "memory": {"used_bytes": 0, "budget_bytes": 1}})
    for act in ("load", "unload"):
        server.on(f"POST /engines/digits:1/{act}", ENGINE)
    server.on("DELETE /engines/digits:1", lambda handler: handler.send(204, b""))
    server.on("GET /engines/unknown", lambda handler: handler.send_json({"code": "engine_not_found"}, status=404))
    server.on("POST /infer/digits:1", {"engine": "digits:1", "predictions": [[{"index": 0, "label": "zero"}]]})
    server.on("GET /device", {"backends": [{"name": "onnxruntime", "available": True}]})

    run(*(model if word == "MODEL" else word for word in words), "--json")

    told = capsys.readouterr()
    assert isinstance(json.loads(told.out), dict)
    assert told.err == ""


def test_jobs_are_listed_with_the_command_for_the_next_page(server, run, capsys):
    server.on("GET /jobs", {"jobs": [JOB, {**FAILED, "id": "j0"}], "next": "j0"})

    status = run("jobs", "--state", "failed", "--limit", "2")

    told = capsys.readouterr().out
    assert status == 0
    assert server.requests == ["GET /jobs?state=failed&limit=2"]
    assert "j0" in told and "jetforge jobs --after j0" in told
    assert "model_invalid" in told


def test_a_job_is_cancelled_by_its_id(server, run, capsys):
    server.on("DELETE /jobs/j1", {**JOB, "state": "cancelled"})

    status = run("jobs", "j1", "--cancel")

    assert status == 0
    assert "cancelled" in capsys.readouterr().out


def test_an_act_without_a_job_names_what_is_missing(server, run, capsys):
    status = run("jobs", "--cancel")

    assert status == 1
    assert "--cancel needs a JOB_ID" in capsys.readouterr().err
    assert server.requests == []


def test_engines_are_listed_with_what_is_warm(server, run, capsys):
    warm = {"state": "ready", "device_bytes": 2_000_000, "requests": 7}
    page = {
        "engines": [{**ENGINE, "warm": warm}],
        "next": None,
        "memory": {"used_bytes": 2_000_000, "budget_bytes": 1e9},
    }
    server.on("GET /engines", page)

    run("engines")

    told = capsys.readouterr().out
    assert "digits:1" in told and "ready, 2.0 MB, 7 requests" in told
    assert "Warm engines hold 2.0 MB of 1.0 GB." in told


def test_predictions_stand_beside_their_images_also_over_several_requests(server, run, tmp_path, capsys):
    images = [tmp_path / f"{number:02d}.png" for number in range(40)]
    for image in images:
        image.write_bytes(b"png")

    def predict(handler: Any) -> None:
        count = b"".join(handler.body_bytes()).count(b'name="image"')
        classes = [{"index": 7, "label": f"seven of {count}", "score": 3.5, "probability": 0.875}]
        handler.send_json({"engine": "digits:1", "predictions": [classes] * count})

    server.on("POST /infer/digits", predict)

    status = run("infer", "digits", *images)

    lines = [line for line in capsys.readouterr().out.splitlines() if "seven of" in line]
    assert status == 0
    assert len(server.requests) == 2
    assert [image.name in line for image, line in zip(images, lines, strict=True)] == [True] * 40
    assert "87.50%" in lines[0]


def test_doctor_names_what_is_missing_and_fails_when_nothing_is_ready(server, run, capsys):
    backends = [
        {"name": "onnxruntime", "available": False, "missing": "No module onnxruntime.", "hint": "pip install it."}
    ]
    server.on("GET /device", {"backends": backends, "memory": {"total_mib": 16_000}, "python": "3.11"})

    status = run("doctor")

    told = capsys.readouterr().out
    assert status == 1
    for shown in ("missing", "No module onnxruntime. pip install it.", "16000", "3.11"):
        assert shown in told


def test_a_service_that_does_not_run_is_told_on_standard_error(run, server, capsys):
    status = run("doctor", "--url", "http://127.0.0.1:9")

    told = capsys.readouterr()
    assert status == 1
    assert "http://127.0.0.1:9" in told.err and "jetforge serve" in told.err
    assert told.out == ""


INSPECTED = {
    "id": "sha256:ab",
    "name": "net.onnx",
    "format": "onnx",
    "size_bytes": 2048,
    "inspection": "done",
    "failure": None,
    "facts": {
        "inputs": [{"name": "image", "dtype": "float32", "shape": [-1, 3, 224, 224]}],
        "outputs": [],
        "opset": 17,
        "parameters": 11_689_512,
        "operators": {"Relu": 17, "Conv": 20},
        "refused_by": {"tensorrt": "it lacks Foo"},
        "needs_shapes": ["image"],
        "hint": "Send -F input_shapes=image:1x3x224x224",
    },
}


def test_an_inspected_model_tells_what_is_in_it_and_what_speaks_against_it(server, run, model, capsys):
    server.on("POST /models", lambda handler: (list(handler.body_bytes()), handler.send_json(INSPECTED, 201)))

    status = run("inspect", model)

    told = capsys.readouterr().out
    assert status == 0
    for shown in ("image float32 -1x3x224x224", "11,689,512", "Conv 20×, Relu 17×", "tensorrt cannot build it"):
        assert shown in told
    assert "Send --option input_shapes=image:1x3x224x224" in told


def test_a_model_that_no_build_can_take_fails_its_inspection(server, run, model, capsys):
    failure = {"code": "model_invalid", "message": "It is damaged.", "hint": "Export it again.", "detail": ""}
    answer = {**INSPECTED, "inspection": "failed", "facts": None, "failure": failure}
    server.on("POST /models", lambda handler: (list(handler.body_bytes()), handler.send_json(answer, 201)))

    status = run("inspect", model)

    assert status == 1
    assert "It is damaged. [model_invalid]" in (told := capsys.readouterr().out) and "Export it again." in told
