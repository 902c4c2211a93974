"""What every backend promises: the seam in app/backends/base.py.

A backend whose runtime is not here is skipped; with JETFORGE_REQUIRE_TENSORRT=1, as on a device, it fails instead.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.backends import registry
from app.backends.base import Backend, Context, NotByRow
from app.domain.builds import BuildOptions
from app.domain.errors import BackendMissing, CompileFailed, EngineUnloadable, ExecutionFailed, OperatorUnsupported
from app.domain.tensors import DType, ShapeRange, Tensors
from tests import networks


class Quiet:
    def step(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


REQUIRED = {"onnxruntime"} | ({"tensorrt"} if os.environ.get("JETFORGE_REQUIRE_TENSORRT") == "1" else set())
ROWS_MAX = 64
Ranges = dict[str, ShapeRange]


@pytest.fixture(params=registry.NAMES)
def backend(request: pytest.FixtureRequest) -> Backend:
    try:
        return registry.backend(request.param)
    except BackendMissing as missing:
        if request.param in REQUIRED:
            raise
        pytest.skip(missing.detail)


def compiled(backend: Backend, model: onnx.ModelProto, folder: Path, ranges: Ranges | None = None) -> Path:
    engine = folder / "engine.bin"
    options = BuildOptions(tactic_sources=())  # TensorRT's own kernels: cuDNN and cuBLAS need not be there
    path, cache = networks.saved(model, folder), folder.parent / "cache"
    ranges = ranges_of(model) if ranges is None else ranges
    backend.compile(path, options, ranges, engine, Quiet(), calibration=None, cache=cache, rows_max=ROWS_MAX)
    return engine


def ranges_of(model: onnx.ModelProto) -> dict[str, ShapeRange]:
    """1 to ROWS_MAX rows for each input whose axis 0 is open."""
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    return {
        name: ShapeRange((1, *shape[1:]), (1, *shape[1:]), (ROWS_MAX, *shape[1:]))
        for name, shape in shapes.items()
        if shape and shape[0] == 0
    }


@contextmanager
def opened(backend: Backend, model: onnx.ModelProto, folder: Path) -> Iterator[Context]:
    engine = compiled(backend, model, folder)
    with closing(backend.load(engine)) as loaded, closing(loaded.open_context()) as context:
        yield context


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_an_engine_answers_as_its_network_does(backend, tmp_path):
    x = normal(2, 4)
    with opened(backend, networks.classifier(), tmp_path) as context:
        answer = context.run({"x": x})

    np.testing.assert_allclose(answer["logits"], x @ networks.CLASSIFIER_WEIGHTS, rtol=1e-5, atol=1e-6)


def test_a_convolution_is_right_at_every_batch_length(backend, tmp_path):
    with opened(backend, networks.convolved(), tmp_path) as context:
        for rows in range(1, 9):
            x = np.full((rows, 8, 8, 8), 0.5, np.float32) * np.arange(1, rows + 1).reshape(-1, 1, 1, 1)
            sums = 36 * np.arange(1, rows + 1, dtype=np.float32)  # 8 channels · 3 · 3 · 0.5, times the row
            wanted = sums.reshape(-1, 1, 1, 1) * np.arange(1, 17).reshape(1, -1, 1, 1) * np.ones((1, 1, 6, 6))

            answer = context.run({"x": x.astype(np.float32)})["y"]

            np.testing.assert_allclose(answer, wanted, rtol=1e-5)


def test_the_signature_tells_names_dtypes_and_shapes(backend, tmp_path):
    engine = compiled(backend, networks.sum_and_difference(), tmp_path)

    with closing(backend.load(engine)) as loaded:
        signature = loaded.signature

    assert [(spec.name, spec.dtype, spec.shape) for spec in signature.inputs] == [
        ("a", DType.FLOAT32, (-1, 2)),
        ("b", DType.FLOAT32, (-1, 2)),
    ]
    assert [spec.name for spec in signature.outputs] == ["total", "rest"]


def test_several_inputs_and_outputs_are_told_apart_by_name(backend, tmp_path):
    a, b = normal(3, 2), normal(3, 2, seed=1)
    with opened(backend, networks.sum_and_difference(), tmp_path) as context:
        answer = context.run({"b": b, "a": a})

    assert list(answer) == ["total", "rest"]
    np.testing.assert_array_equal(answer["total"], a + b)
    np.testing.assert_array_equal(answer["rest"], a - b)


def test_joined_parts_get_what_separate_runs_answer_and_keep_it(backend, tmp_path):
    parts = [{"a": normal(rows, 2, seed=rows), "b": normal(rows, 2, seed=9 + rows)} for rows in (3, 1, 2)]
    with opened(backend, networks.sum_and_difference(), tmp_path) as context:
        for _ in range(3):  # TensorRT records what it repeats
            together = context.run_joined(parts, [3, 1, 2])
        context.run_joined(parts[:2], [3, 1])
        context.run(parts[1])

    for part, answer in zip(parts, together, strict=True):
        assert list(answer) == ["total", "rest"]
        np.testing.assert_array_equal(answer["total"], part["a"] + part["b"])
        np.testing.assert_array_equal(answer["rest"], part["a"] - part["b"])


def test_outputs_that_are_not_by_row_are_never_split(backend, tmp_path):
    parts = [{"x": normal(rows, 4)} for rows in (1, 2)]
    one_row = networks.network(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)],
        [networks.value("x", ["rows", 4])],
        [networks.value("y", [1, 4])],
        [networks.constant("axes", np.array([0], np.int64))],
    )
    with opened(backend, one_row, tmp_path) as context, pytest.raises(NotByRow):
        context.run_joined(parts, [1, 2])


@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_a_context_s_share_of_the_device_changes_no_answer(backend, tmp_path, at_once):
    engine = compiled(backend, networks.convolved(), tmp_path)
    x = normal(2, 8, 8, 8)
    with closing(backend.load(engine)) as loaded:
        with closing(loaded.open_context()) as context:
            wanted = context.run({"x": x})["y"]
        with closing(loaded.open_context(at_once)) as context, closing(loaded.open_context(1)) as beside:
            answers = [opened.run({"x": x})["y"] for opened in (context, beside)]

        assert loaded.parallel_runs >= 1
    for answer in answers:
        np.testing.assert_allclose(answer, wanted, rtol=1e-5, atol=1e-5)


def test_outputs_survive_the_next_run_and_changes_to_the_input(backend, tmp_path):
    with opened(backend, networks.same(TensorProto.FLOAT), tmp_path) as context:
        x = np.ones((2, 3), np.float32)
        first = context.run({"x": x})["y"]
        x[:] = 7
        context.run({"x": x})

    np.testing.assert_array_equal(first, np.ones((2, 3)))


def test_changing_an_answer_leaves_the_engine_unharmed(backend, tmp_path):
    with opened(backend, networks.no_inputs(), tmp_path) as context:
        context.run({})["y"][:] = 9
        again = context.run({})["y"]

    np.testing.assert_array_equal(again, [1, 2, 3])


def test_contexts_run_in_parallel_without_mixing_their_answers(backend, tmp_path):
    engine = compiled(backend, networks.convolved(), tmp_path)
    together = threading.Barrier(4)

    def work(loaded, number: int) -> bool:
        with closing(loaded.open_context()) as context:
            together.wait(timeout=30)
            x = np.full((1, 8, 8, 8), number + 1, np.float32)
            return all(context.run({"x": x})["y"][0, 0, 0, 0] == 72 * (number + 1) for _ in range(50))

    with closing(backend.load(engine)) as loaded, ThreadPoolExecutor(4) as threads:
        right = list(threads.map(lambda number: work(loaded, number), range(4)))

    assert right == [True] * 4


def test_closing_one_context_leaves_the_others_working(backend, tmp_path):
    engine = compiled(backend, networks.doubled(), tmp_path)
    with closing(backend.load(engine)) as loaded:
        first, second = loaded.open_context(), loaded.open_context()
        first.close()
        answer = second.run({"x": np.ones((1, 4), np.float32)})["y"]
        second.close()

    np.testing.assert_array_equal(answer, np.full((1, 4), 2))


@pytest.mark.parametrize("dtype", [DType.BOOL, DType.INT32, DType.INT64, DType.FLOAT16, DType.FLOAT32])
def test_every_element_type_passes_unchanged(backend, tmp_path, dtype):
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype.numpy)

    assert_passes_unchanged(backend, tmp_path, x)


@pytest.mark.parametrize("dtype", [DType.UINT8, DType.FLOAT64])
def test_an_element_type_that_not_every_runtime_has_passes_unchanged_or_is_refused(backend, tmp_path, dtype):
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype.numpy)
    try:
        assert_passes_unchanged(backend, tmp_path, x)
    except CompileFailed as refused:
        assert backend.name == "tensorrt" and refused.hint


def test_bytes_of_an_image_are_turned_into_floats_by_the_engine(backend, tmp_path):
    x = np.array([[0, 1, 255]], np.uint8)
    model = networks.network(
        [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), helper.make_node("Mul", ["f", "two"], ["y"])],
        [networks.value("x", ["rows", 3], TensorProto.UINT8)],
        [networks.value("y", ["rows", 3])],
        [networks.constant("two", np.float32(2))],
    )
    with opened(backend, model, tmp_path) as context:
        answer = context.run({"x": x})["y"]

    np.testing.assert_array_equal(answer, [[0, 2, 510]])


def test_batch_lengths_in_any_order_are_answered_as_when_they_are_alone(backend, tmp_path):
    with opened(backend, networks.convolved(), tmp_path) as context:
        for rows in (1, 4, 1, 2, 4, 4, 2, 1, 64, 1, 4, 64, 2):
            x = normal(rows, 8, 8, 8, seed=rows)
            answer = context.run({"x": x})["y"]

            alone = np.concatenate([context.run({"x": x[row : row + 1]})["y"] for row in range(rows)])
            np.testing.assert_allclose(answer, alone, rtol=1e-4, atol=1e-4)


def assert_passes_unchanged(backend: Backend, folder: Path, x: np.ndarray) -> None:
    onnx_type = helper.np_dtype_to_tensor_dtype(x.dtype)
    with opened(backend, networks.same(onnx_type), folder) as context:
        answer = context.run({"x": x})["y"]

    assert answer.dtype == x.dtype
    np.testing.assert_array_equal(answer, x)


def test_scalars_are_arrays_without_axes(backend, tmp_path):
    with opened(backend, networks.scalar_plus_one(), tmp_path) as context:
        answer = context.run({"x": np.array(41, np.float32)})["y"]

    assert isinstance(answer, np.ndarray)
    assert answer.shape == () and answer == 42


def test_a_tensor_of_no_rows_is_answered_with_no_rows(backend, tmp_path):
    with opened(backend, networks.doubled(), tmp_path) as context:
        answer = context.run({"x": np.empty((0, 4), np.float32)})["y"]

    assert answer.shape == (0, 4)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": np.ones((1, 5), np.float32)},
        {"x": np.ones((1, 4), np.float64)},
        {"x": np.ones(4, np.float32)},
        {"other": np.ones((1, 4), np.float32)},
        {},
    ],
    ids=["length", "dtype", "rank", "name", "missing"],
)
def test_what_the_runtime_refuses_is_an_execution_failure_and_the_context_goes_on(backend, tmp_path, inputs: Tensors):
    with opened(backend, networks.doubled(), tmp_path) as context:
        with pytest.raises(ExecutionFailed) as caught:
            context.run(inputs)
        answer = context.run({"x": np.ones((1, 4), np.float32)})["y"]

    assert "\n" not in caught.value.detail and str(tmp_path) not in caught.value.detail
    np.testing.assert_array_equal(answer, np.full((1, 4), 2))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "missing"])
def test_a_damaged_engine_file_is_refused(backend, tmp_path, damage):
    engine = compiled(backend, networks.convolved(), tmp_path)
    whole = engine.read_bytes()
    engine.unlink()
    if damage != "missing":
        engine.write_bytes({"truncated": whole[: len(whole) // 2], "garbage": b"hello" * 100, "empty": b""}[damage])

    with pytest.raises(EngineUnloadable) as caught:
        backend.load(engine)

    assert str(tmp_path) not in caught.value.detail


def test_a_model_that_cannot_be_compiled_says_why(backend, tmp_path):
    model = networks.doubled()
    model.graph.node[0].input[0] = "nobody"

    with pytest.raises(CompileFailed, match="nobody" if backend.name == "onnxruntime" else "."):
        compiled(backend, model, tmp_path)


def test_check_names_every_operator_that_is_missing(backend, tmp_path):
    path = networks.saved(networks.custom_operators(), tmp_path)

    with pytest.raises(OperatorUnsupported) as caught:
        backend.check(path)

    assert "acme::Foo (2×)" in caught.value.detail and "acme::Bar (1×)" in caught.value.detail


def test_a_network_of_the_newest_opset_that_a_backend_reads_is_built(backend, tmp_path):
    model = networks.classifier()
    model.opset_import[0].version = backend.opset_max
    model.ir_version = 8
    path = networks.saved(model, tmp_path)

    backend.check(path)
    with opened(backend, model, tmp_path) as context:
        assert context.run({"x": normal(2, 4)})["logits"].shape == (2, 3)


def test_a_batch_that_nobody_limits_runs_up_to_the_largest_that_was_told(backend, tmp_path):
    engine = compiled(backend, networks.doubled(), tmp_path, ranges={})
    x = normal(ROWS_MAX, 4)
    with closing(backend.load(engine)) as loaded, closing(loaded.open_context()) as context:
        answer = context.run({"x": x})["y"]

    np.testing.assert_array_equal(answer, 2 * x)


def test_check_accepts_operators_that_the_model_defines_itself(backend, tmp_path):
    model = networks.custom_operators()
    body = [helper.make_node("Identity", ["i"], ["o"])]
    for name in ("Foo", "Bar"):
        model.functions.append(
            helper.make_function("acme", name, ["i"], ["o"], body, [helper.make_opsetid("", networks.OPSET)])
        )

    backend.check(networks.saved(model, tmp_path))


def test_memory_is_given_back_after_close(backend, tmp_path):
    model = networks.network(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        [networks.value("x", ["rows", 1024])],
        [networks.value("y", ["rows", 2048])],
        [networks.constant("weights", normal(1024, 2048))],  # 8 MiB
    )
    engine = compiled(backend, model, tmp_path)
    x = np.ones((64, 1024), np.float32)

    def load_run_close() -> None:
        with closing(backend.load(engine)) as loaded, closing(loaded.open_context()) as context:
            context.run({"x": x})

    for _ in range(5):
        load_run_close()
    before = resident_bytes()
    for _ in range(30):
        load_run_close()

    assert resident_bytes() - before < 4 * engine.stat().st_size  # 30 leaks would be 30 engines


def test_a_loaded_engine_says_what_it_holds_of_memory(backend, tmp_path):
    engine = compiled(backend, networks.convolved(), tmp_path)
    with closing(backend.load(engine)) as loaded:
        assert loaded.device_bytes >= engine.stat().st_size


def test_facts_are_the_same_every_time(backend):
    facts = backend.facts()

    assert facts == backend.facts()
    assert facts.backend == backend.name and facts.backend_version and facts.device and facts.architecture


def test_auto_chooses_the_best_backend_that_works():
    assert registry.chosen("auto").name == registry.available()[0]


def test_an_unknown_backend_is_missing_and_the_hint_names_the_others():
    with pytest.raises(BackendMissing) as caught:
        registry.backend("abacus")

    assert "onnxruntime" in caught.value.hint


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
