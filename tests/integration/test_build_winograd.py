from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from app.backends import onnxruntime as backend
from app.backends.onnxruntime_tactics import Verdict
from app.domain.jobs import EventKind
from tests import networks
from tests.bench import Bench

NETWORK = networks.resnet18(side=64, classes=10)
REWRITTEN = 7  # of its convolutions have lines enough


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "work")


def kernels(bench: Bench) -> set[tuple[int, ...]]:
    """Height and width of every kernel of the engine's convolutions."""
    model = onnx.load(str(bench.work.engine))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return {shapes[node.input[1]][2:] for node in model.graph.node if node.op_type == "Conv"}


def told(bench: Bench) -> list[str]:
    return [text for text in bench.told(EventKind.STEP) if "Winograd" in text]


@pytest.mark.parametrize(("ratio", "used"), [(0.8, True), (1.2, False)])
def test_the_way_that_was_faster_is_in_the_engine(bench, monkeypatch, ratio, used):
    monkeypatch.setattr(backend, "compared", lambda ways, inputs, threads: Verdict({1: ratio}))

    built = bench.build(NETWORK, rows=4)

    assert ((1, 3) in kernels(bench)) is used
    assert built.accuracy.outputs[0].sqnr_db > 100 and built.signature.rows_max == 4
    words = "used" if used else "not used"
    assert told(bench) == [
        f"Winograd's filtering is {words} for {REWRITTEN} convolutions: {ratio:.2f} of the time with 1 thread(s)"
    ]
    assert not list(bench.work.candidates.iterdir())


def test_both_ways_are_run_and_the_engine_answers_as_the_network(bench):
    built = bench.build(NETWORK)
    images = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)

    answer = bench.run({"image": images})["logits"]

    assert len(told(bench)) == 1 and "of the time with 1 thread(s)" in told(bench)[0]
    assert built.accuracy.outputs[0].sqnr_db > 100
    np.testing.assert_allclose(answer, _expected(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", [networks.resnet18(width=8, side=32, classes=10), networks.classifier()])
def test_a_network_without_such_convolutions_is_not_tried(bench, model):
    bench.build(model)

    assert told(bench) == []


def test_lengths_that_stay_open_are_not_tried(bench):
    model = networks.resnet18(side=64, classes=10)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "side"

    bench.build(model, input_shapes={"image": (1, 3, 64, 64)})

    assert told(bench) == []


def _expected(images: np.ndarray) -> np.ndarray:
    session = backend.ort.InferenceSession(NETWORK.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])
