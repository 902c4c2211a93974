"""The service's JSON as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType

from app.console.display import accuracy_table, candidates_table, engine_table

LATENCY = {"p50_ms": 0.25, "p99_ms": 0.5, "throughput_per_s": 4000, "rows": 1, "runs": 200}
ACCURACY = {
    "outputs": [{"sqnr_db": 40.5}, {"sqnr_db": 35.1}],
    "top1_agreement": 0.9833,
    "top5_agreement": 1.0,
    "labelled": {"samples": 60, "source": 0.995, "engine": 0.99},
}
MEASURED = {"accepted": True, "reason": "", "accuracy": ACCURACY, "latency": LATENCY, "size_bytes": 845000}
ENGINE: dict[str, Any] = {
    "ref": "digits:1",
    "precision": "int8",
    "int8_method": "qdq",
    "backend": "onnxruntime",
    "accuracy": ACCURACY,
    "latency": LATENCY,
    "signature": {"inputs": [], "outputs": []},
    "size_bytes": 845000,
    "built_in_s": 3,
    "candidates": [
        {"precision": "int8", "int8_method": "qdq", "built_in_s": 0.2, **MEASURED},
        {"precision": "fp16", "int8_method": None, "accepted": False, "reason": "It is not [finite].", "accuracy": None}
        | {"latency": None, "size_bytes": None, "built_in_s": None},
    ],
}


def printed(table: RenderableType) -> list[str]:
    console = Console(width=250)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_every_candidate_is_shown_with_its_figures_and_the_published_one_marked():
    lines = printed(candidates_table(ENGINE))

    (int8,) = [line for line in lines if "int8 qdq *" in line]
    assert all(text in int8 for text in ("accepted", "35.1", "98.33%", "99.00%", "0.250", "0.500", "4,000", "845.0 kB"))
    (fp16,) = [line for line in lines if "fp16" in line]
    assert "refused" in fp16 and "It is not [finite]." in fp16 and "*" not in fp16


def test_an_engine_shows_how_many_labels_it_got_right():
    lines = printed(engine_table(ENGINE))

    assert any("99.0%, source 99.5%, of 60 samples" in line for line in lines)
    assert any("int8 qdq on onnxruntime" in line for line in lines)


def test_an_uploaded_engine_is_shown_as_not_verified():
    accuracy = {"outputs": [], "samples": 0, "inputs": "none", "reference": "none: uploaded as an engine"}

    lines = printed(accuracy_table({"ref": "mine:1", "accuracy": accuracy}))

    assert "mine:1: not verified" in lines[0]
