"""Changes to the graph that the request asks for: a dynamic batch, folded preprocessing, Q/DQ nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

from app.backends import registry
from app.build.cast import cast_to_half
from app.build.graph import described_source
from app.build.quantise import Quantiser
from app.build.samples import SampleSource, Selection, surveyed
from app.build.shapes import run_shapes
from app.domain.builds import Placement, Precision, Ranging
from app.domain.errors import DynamicBatchImpossible, FoldImpossible
from app.domain.jobs import EventKind
from app.domain.preprocess import Preprocess, normalised, row_from_image
from app.domain.tensors import DType, Tensor, Tensors, TensorSpec
from tests import networks
from tests.bench import Bench
from tests.samples import encoded, picture, pictures


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "work")


# --- dynamic batch -------------------------------------------------------------------------------------------------


def reshaped(rows: int, *shapes: list[int]) -> onnx.ModelProto:
    """x (rows, 4, 3) through Reshapes to constant shapes, and back to (rows, 12)."""
    names = ["x", *(f"t{n}" for n in range(len(shapes))), "y"]
    every = [*shapes, [rows, 12]]
    return networks.network(
        [helper.make_node("Reshape", [names[n], f"s{n}"], [names[n + 1]]) for n in range(len(every))],
        [networks.value("x", [rows, 4, 3])],
        [networks.value("y", [rows, 12])],
        [networks.constant(f"s{n}", np.array(shape, np.int64)) for n, shape in enumerate(every)],
    )


def with_class_token() -> onnx.ModelProto:
    """Concatenates x with a constant that has one row."""
    return networks.network(
        [helper.make_node("Concat", ["x", "token"], ["y"], axis=1)],
        [networks.value("x", [1, 2, 4])],
        [networks.value("y", [1, 3, 4])],
        [networks.constant("token", np.ones((1, 1, 4), np.float32))],
    )


@pytest.mark.parametrize(
    "model",
    [
        networks.channel_means(rows=1),
        networks.channel_means(rows=4),
        reshaped(1, [1, 2, 6]),
        reshaped(1, [2, 6], [1, -1]),
        reshaped(2, [2, 6, -1], [-1, 3]),
        networks.resnet18(8, 32, 10, rows=1),
    ],
    ids=["pool", "four rows", "heads", "rows within axis 0", "two rows", "resnet"],
)
def test_a_fixed_batch_becomes_dynamic_and_is_proven(bench, model):
    built = bench.build(model, dynamic_batch=True)

    assert built.signature.inputs[0].shape[0] == built.signature.outputs[0].shape[0] == -1
    assert built.signature.rows_max == 32
    assert any("proven row by row" in text for text in bench.told(EventKind.STEP))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (with_class_token(), "does not run with other batch lengths"),
        (networks.same(1, (2, 3, 3)), "no batch axis in common"),
        (networks.scalar_plus_one(), "no batch axis"),
    ],
    ids=["token", "scalar output", "scalar"],
)
def test_a_batch_that_cannot_become_dynamic_says_why(bench, model, words):
    if "common" in words:
        model.graph.output.append(networks.value("z", []))
        model.graph.node.append(helper.make_node("ReduceSum", ["x"], ["z"], keepdims=0))

    assert words in bench.fail(model, DynamicBatchImpossible, dynamic_batch=True).detail


def test_rows_that_depend_on_their_neighbours_are_not_made_dynamic(bench):
    model = networks.centred()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2

    assert "differ" in bench.fail(model, DynamicBatchImpossible, dynamic_batch=True).detail


def test_a_batch_that_is_dynamic_already_stays_as_it_is(bench):
    assert bench.build(networks.doubled(), dynamic_batch=True).signature.rows_max == 32


# --- folded preprocessing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_folded_engine_takes_pixels_and_answers_the_same(bench, color, layout):
    shape = ("rows", 3, 6, 8) if layout == "nchw" else ("rows", 6, 8, 3)
    asked = {"color": color, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "resize": "letterbox"}
    image = encoded(picture(3, 40, 30), ".png")
    plain = bench.build(networks.same(1, shape), preprocess=asked)
    assert plain.preprocess is not None
    wanted = bench.run({"x": row_from_image(image, plain.preprocess)[None]})["y"]

    built = bench.build(networks.same(1, shape), preprocess=asked, fold_preprocess=True)

    assert built.preprocess is not None
    row = row_from_image(image, built.preprocess)
    assert (row.dtype, row.shape) == (np.uint8, (6, 8, 3))
    assert built.signature.inputs[0] == TensorSpec("x", DType.UINT8, (-1, 6, 8, 3))
    np.testing.assert_allclose(bench.run({"x": row[None]})["y"], wanted, rtol=2e-6, atol=2e-6)
    assert built.signature.rows_max == 32 and built.accuracy.outputs[0].sqnr_db > 100


def test_shapes_asked_for_follow_the_folded_layout(bench):
    built = bench.build(networks.channel_means(), fold_preprocess=True, max_shapes={"image": (4, 3, 8, 8)})

    assert built.signature.ranges["image"].max == (4, 8, 8, 3) and built.signature.rows_max == 4


@pytest.mark.parametrize("model", [networks.classifier(), networks.same(10, ("rows", 3, 8, 8))], ids=["table", "half"])
def test_what_cannot_be_folded_is_refused(bench, model):
    bench.fail(model, FoldImpossible, fold_preprocess=True)


def test_the_recipe_applied_alone_is_the_one_of_whole_images():
    recipe = Preprocess("x", width=8, height=6, mean=(0.5,), std=(0.25,))
    image = picture(1, 8, 6)

    np.testing.assert_array_equal(normalised(image, recipe), row_from_image(encoded(image, ".png"), recipe))


# --- Q/DQ nodes ------------------------------------------------------------------------------------------------------


class Quiet:
    def step(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


SIDE = 32
MODEL = networks.resnet18(8, SIDE, 10)


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    path = pictures(tmp_path_factory.mktemp("samples") / "a.zip", 60, side=SIDE)
    spec = TensorSpec("image", DType.FLOAT32, (3, SIDE, SIDE))
    return surveyed(SampleSource(path, {"image": spec}, Preprocess("image", SIDE, SIDE))).calibration()


def quantised(
    folder: Path, model: onnx.ModelProto, samples: Selection, placement: Placement, ranging: Ranging = Ranging.MINMAX
) -> onnx.ModelProto:
    source = described_source(model)
    shapes = run_shapes(source, {}, {"image": (1, 3, SIDE, SIDE)})
    quantiser = Quantiser(samples, shapes, ranging, folder / "kept", Quiet())
    quantiser.quantise(networks.saved(model, folder), folder / "quantised.onnx", placement)
    return onnx.load(folder / "quantised.onnx")


def sqnr_db(folder: Path, samples: Selection) -> float:
    """Of the quantised graph, every optimisation off, against the model it was made from."""
    runtime = registry.backend("onnxruntime")
    with (
        closing(runtime.load(folder / "quantised.onnx")) as graph,
        closing(graph.open_context()) as context,
    ):
        return _sqnr_db(folder, samples, lambda batch: context.run(batch)["logits"])


def sqnr_by_definition_db(folder: Path, samples: Selection) -> float:
    """As `sqnr_db`, by ONNX's own evaluator: ONNX Runtime 1.23 quantises float16 with 17 dB. From opset 19 on."""
    evaluator = ReferenceEvaluator(str(folder / "quantised.onnx"))
    return _sqnr_db(folder, samples, lambda batch: evaluator.run(["logits"], batch)[0])


def _sqnr_db(folder: Path, samples: Selection, run: Callable[[Tensors], Tensor]) -> float:
    signal = noise = 0.0
    with (
        closing(registry.backend("onnxruntime").load(folder / "model.onnx")) as model,
        closing(model.open_context()) as context,
    ):
        for batch in samples.batches(8):
            wanted = context.run(batch)["logits"]
            signal += float(np.square(wanted).sum())
            noise += float(np.square(wanted - run(batch)).sum())
    return float(10 * np.log10(signal / noise))


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("ranging", list(Ranging))
def test_a_resnet_keeps_its_answers_in_either_placement(tmp_path, selection, placement, ranging):
    quantised(tmp_path, MODEL, selection, placement, ranging)

    assert 25 < sqnr_db(tmp_path, selection) < 60


def test_for_tensorrt_only_what_integer_kernels_read_is_quantised(tmp_path, selection):
    graph = quantised(tmp_path, MODEL, selection, Placement.TENSORRT).graph

    pairs = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    readers = Counter(
        (node.op_type, sum(name in pairs for name in node.input)) for node in graph.node if pairs & set(node.input)
    )
    assert readers == {("Conv", 2): 20, ("Gemm", 2): 1, ("Add", 1): 8}
    assert len(pairs) == 20 * 2 + 2 + 8  # each has one reader


def test_for_tensorrt_numbers_are_symmetric_and_weights_have_a_scale_a_channel(tmp_path, selection):
    graph = quantised(tmp_path, MODEL, selection, Placement.TENSORRT).graph

    numbers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert numbers[node.input[2]].dtype == np.int8 and not numbers[node.input[2]].any()
        if node.op_type == "Conv":
            scales = numbers[producers[node.input[1]].input[1]]
            weight = numbers[producers[producers[node.input[1]].input[0]].input[0]]
            np.testing.assert_allclose(scales, np.abs(weight).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
            assert numbers[producers[node.input[0]].input[1]].shape == ()


def test_of_a_residual_addition_the_branch_without_the_last_convolution_is_quantised(tmp_path, selection):
    graph = quantised(tmp_path, MODEL, selection, Placement.TENSORRT).graph

    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Add":
            kinds = sorted(producers[name].op_type for name in node.input)
            assert kinds == ["Conv", "DequantizeLinear"]


def test_an_old_opset_is_raised_to_one_that_has_scales_a_channel(tmp_path, selection):
    model = networks.network(
        [helper.make_node("Conv", ["image", "w"], ["c"]), helper.make_node("Flatten", ["c"], ["logits"])],
        [networks.value("image", ["rows", 3, SIDE, SIDE])],
        [networks.value("logits", ["rows", 2 * SIDE * SIDE])],
        [networks.constant("w", np.random.default_rng(1).normal(0, 1, (2, 3, 1, 1)).astype(np.float32))],
        opset=11,
    )

    made = quantised(tmp_path, model, selection, Placement.TENSORRT)

    assert made.opset_import[0].version == 13 and sqnr_db(tmp_path, selection) > 25


@pytest.mark.parametrize("opset", [17, 19])
def test_a_quantised_graph_is_float16_around_its_integers_where_types_come_from_the_graph(tmp_path, selection, opset):
    quantised(tmp_path, version_converter.convert_version(MODEL, opset), selection, Placement.TENSORRT)
    before = sqnr_db(tmp_path, selection)

    cut = cast_to_half(tmp_path / "quantised.onnx", tmp_path / "half.onnx")
    (tmp_path / "half.onnx").replace(tmp_path / "quantised.onnx")

    made = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "quantised.onnx"), strict_mode=True, data_prop=True)
    graph = made.graph
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*graph.value_info, *graph.input, *graph.output)}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    half = TensorProto.FLOAT16
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            floats = node.output[0] if node.op_type == "DequantizeLinear" else node.input[0]
            assert [kinds[floats], kinds[node.input[1]], kinds[node.input[2]]] == [half, half, TensorProto.INT8]
        if node.op_type in ("Conv", "Gemm", "Add", "Relu"):
            assert {kinds[name] for name in (*node.input, *node.output)} == {half}
    casts = [node for node in graph.node if node.op_type == "Cast"]
    assert len(casts) == 2  # the input and the output stay float32
    assert cut == [] and made.opset_import[0].version == 19
    assert sqnr_by_definition_db(tmp_path, selection) > before - 1


def test_folded_engines_quantise_behind_the_folded_arithmetic(bench, tmp_path):
    samples = pictures(tmp_path / "a.zip", 100, side=SIDE)

    built = bench.build(MODEL, calibration=samples, precision=Precision.INT8, fold_preprocess=True, simplify=True)

    assert built.signature.inputs[0].dtype is DType.UINT8
    assert built.accuracy.outputs[0].sqnr_db > 25
