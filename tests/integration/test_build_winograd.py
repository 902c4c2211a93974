from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest

from app.backends import onnxruntime as backend
from app.backends.onnxruntime_pair import graph_of
from app.backends.onnxruntime_session import RuntimeRefused
from app.backends.onnxruntime_tactics import Verdict
from app.domain.jobs import EventKind
from tests import networks
from tests.bench import Bench

NETWORK = networks.resnet18(side=64, classes=10)
REWRITTEN = 7  # of its convolutions have lines enough


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "work")


def kernels(bench: Bench, threads: int) -> set[tuple[int, ...]]:
    """Height and width of every kernel of the convolutions that runs of so many threads have."""
    content = graph_of(bench.work.engine, threads) or bench.work.engine.read_bytes()
    model = onnx.load_from_string(content)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return {shapes[node.input[1]][2:] for node in model.graph.node if node.op_type == "Conv"}


def told(bench: Bench) -> list[str]:
    return [text for text in bench.told(EventKind.STEP) if "Winograd" in text]


@pytest.mark.parametrize(
    ("ratios", "used", "rewritten"),
    [
        ({1: 0.8, 4: 0.9}, "always", {1: True, 4: True}),
        ({1: 0.8, 4: 1.1}, "in runs of one thread", {1: True, 4: False}),
        ({1: 1.1, 4: 0.8}, "never", {1: False, 4: False}),
    ],
    ids=["always", "one thread", "never"],
)
def test_the_way_that_was_faster_is_in_the_engine(bench, monkeypatch, ratios, used, rewritten):
    monkeypatch.setattr(backend, "compared", lambda ways, inputs, threads: Verdict(ratios))

    built = bench.build(NETWORK, rows=4)

    assert {threads: (1, 3) in kernels(bench, threads) for threads in ratios} == rewritten
    assert built.accuracy.outputs[0].sqnr_db > 100 and built.signature.rows_max == 4
    assert told(bench) == [f"Winograd's filtering of {REWRITTEN} convolutions is used {Verdict(ratios)}"]
    assert f"used {used}: " in told(bench)[0]
    assert not list(bench.work.candidates.iterdir())


@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_of_two_graphs_answers_as_its_network_with_any_number_of_threads(bench, monkeypatch, threads):
    monkeypatch.setattr(backend, "compared", lambda ways, inputs, threads: Verdict({1: 0.8, 2: 1.1}))
    built = bench.build(NETWORK)
    images = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)

    with (
        closing(backend.OnnxRuntime(threads).load(bench.work.engine)) as engine,
        closing(engine.open_context()) as context,
    ):
        answer = context.run({"image": images})["logits"]
        assert engine.device_bytes < 3 * built.size_bytes  # its larger graph counts, not both

    np.testing.assert_allclose(answer, _expected(images), rtol=1e-3, atol=1e-4)


def test_both_ways_are_run(bench):
    built = bench.build(NETWORK)

    assert len(told(bench)) == 1 and "of the time with 1 thread(s)" in told(bench)[0]
    assert built.accuracy.outputs[0].sqnr_db > 100


def test_a_build_does_not_fail_by_what_it_only_tries(bench, monkeypatch):
    def refused(*_: object) -> None:
        raise RuntimeRefused("no such kernel")

    monkeypatch.setattr(backend, "compared", refused)

    built = bench.build(NETWORK)

    assert built.accuracy.outputs[0].sqnr_db > 100
    assert told(bench) == ["Winograd's filtering could not be tried: no such kernel"]


def test_nothing_is_tried_where_memory_is_short(bench, monkeypatch):
    monkeypatch.setattr(backend.OnnxRuntime, "free_bytes", lambda self: 1 << 20)

    bench.build(NETWORK)

    assert told(bench) == []


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
