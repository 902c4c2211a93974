"""The build recipe from an uploaded file to a proven engine, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.backends import registry
from app.build.graph import described_source
from app.build.reference import opened, probed_shapes
from app.build.simplify import difference
from app.build.workdir import ProgressReader
from app.domain.builds import Tolerance
from app.domain.errors import (
    AccuracyLost,
    DTypeUnsupported,
    ExternalDataMissing,
    LabelsContradict,
    ModelInvalid,
    OperatorUnsupported,
    PreprocessContradicts,
    ShapesContradict,
    ShapesNeeded,
    SourceFailed,
)
from app.domain.jobs import EventKind, Stage
from app.domain.tensors import ShapeRange
from tests import networks
from tests.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "work")


# --- what comes out ------------------------------------------------------------------------------------------------


def test_a_model_that_leaves_the_size_of_its_images_open_says_how_to_give_it(bench):
    model = networks.channel_means("height", "width")

    plain, sized = bench.build(model), bench.build(model, preprocess={"width": 8, "height": 8})

    assert plain.preprocess is None and ['"width": 224' in text for text in plain.warnings] == [True]
    assert sized.preprocess is not None and sized.warnings == ()


def test_a_recipe_for_colours_that_nobody_asked_for_is_told(bench):
    model = networks.channel_means(8, 8)

    guessed, asked = bench.build(model), bench.build(model, preprocess={"scale": 1 / 255})

    assert guessed.preprocess == asked.preprocess
    assert (["preprocess=imagenet" in text for text in guessed.warnings], asked.warnings) == ([True], ())


def test_a_classifier_is_built_and_proven(bench):
    built = bench.build(networks.classifier(), labels=("a", "b", "c"))

    x = np.eye(4, dtype=np.float32)
    np.testing.assert_allclose(bench.run({"x": x})["logits"], networks.CLASSIFIER_WEIGHTS, atol=1e-6)
    assert built.size_bytes == bench.work.engine.stat().st_size
    assert built.facts == registry.backend("onnxruntime").facts()
    assert built.signature.outputs[0].shape == (-1, 3)
    assert built.labels == ("a", "b", "c")
    assert built.preprocess is None and built.warnings == ()
    assert built.accuracy.outputs[0].sqnr_db > 100 and built.accuracy.top1_agreement == 1
    assert built.accuracy.samples >= 8 and built.accuracy.reference.startswith("onnxruntime")
    assert 0 < built.latency.p50_ms <= built.latency.p99_ms and built.latency.throughput_per_s > 0


def test_the_stages_are_told_in_their_order(bench):
    bench.build(networks.classifier())

    lines = list(ProgressReader(bench.work).new_lines())
    stages = [line.stage for line in lines if line.kind is EventKind.STAGE]
    assert stages == [Stage.INSPECT, Stage.SIMPLIFY, Stage.COMPILE, Stage.VERIFY]
    assert any("opset 17" in line.message and "x float32 -1x4" in line.message for line in lines)


def test_the_upload_is_never_written_to(bench):
    data = networks.with_initializer_as_input().SerializeToString()
    bench.build(data, simplify=True)

    assert bench.work.model.read_bytes() == data


def test_an_image_network_gets_the_recipe_of_its_input(bench):
    built = bench.build(networks.channel_means(), preprocess={"color": "bgr"})

    assert built.preprocess is not None
    assert built.preprocess.row_shape == (3, 8, 8) and built.preprocess.color.value == "bgr"


def test_a_simplified_network_answers_the_same(bench):
    built = bench.build(networks.convolved(), simplify=True)

    assert built.warnings == ()
    assert any("simplified" in text for text in bench.told(EventKind.STEP))
    assert bench.run({"x": np.ones((1, 8, 8, 8), np.float32)})["y"][0, 1, 0, 0] == 144


def test_a_simplification_that_changed_the_answers_is_told(tmp_path):
    source = described_source(networks.doubled())
    files = [networks.saved(model, tmp_path, f"{name}.onnx") for name, model in alike().items()]

    with closing(opened((files[0],), source.inputs)) as reference:
        shapes, _ = probed_shapes(source, {}, reference)
        told = [difference(file, reference, source, shapes, Tolerance()) for file in files]

    assert told[0] == ""
    assert all("not the same network" in text for text in told[1:])


def alike() -> dict[str, onnx.ModelProto]:
    """`doubled`, and networks that a bad simplifier might make of it."""
    tripled, fixed, renamed = networks.doubled(), networks.doubled(), networks.doubled()
    tripled.graph.initializer[0].CopyFrom(networks.constant("two", np.float32(2.001)))
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    renamed.graph.node[0].output[0] = renamed.graph.output[0].name = "z"
    return {"same": networks.doubled(), "tripled": tripled, "fixed": fixed, "renamed": renamed}


@pytest.mark.parametrize("make", [networks.no_inputs, networks.scalar_plus_one, networks.with_initializer_as_input])
def test_unusual_inputs_build(bench, make: Callable[[], onnx.ModelProto]):
    assert bench.build(make()).accuracy.outputs[0].sqnr_db > 100


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL])
def test_other_element_types_build(bench, dtype):
    assert bench.build(networks.same(dtype)).signature.rows_max == 32


def test_an_old_opset_is_converted_and_compared_with_the_upload(bench):
    model = networks.network(
        [helper.make_node("Relu", ["x"], ["y"])],
        [networks.value("x", ["n", 2])],
        [networks.value("y", ["n", 2])],
        opset=6,
    )
    model.ir_version = 3

    bench.build(model)

    assert any("opset 6 → 13" in text for text in bench.told(EventKind.STEP))


# --- rows ----------------------------------------------------------------------------------------------------------


def test_independent_rows_may_be_joined_up_to_the_setting(bench):
    assert bench.build(networks.doubled(), rows=7).signature.rows_max == 7


def test_the_largest_shape_asked_for_limits_the_rows(bench):
    built = bench.build(networks.doubled(), rows=7, max_shapes={"x": (12, 4)})

    assert built.signature.rows_max == 12
    assert built.signature.ranges == {"x": ShapeRange((1, 4), (12, 4), (12, 4))}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (networks.centred(), "differ from those to the rows alone"),
        (networks.channel_means(rows=1), "fixed at 1"),
        (networks.noisy(), "random"),
    ],
    ids=["dependent", "fixed", "random"],
)
def test_rows_that_are_not_proven_independent_are_never_joined(bench, model, reason):
    assert bench.build(model).signature.rows_max == 1
    assert any(reason in text for text in bench.told(EventKind.STEP))


def test_a_shape_asked_for_that_leaves_no_room_is_never_joined(bench):
    assert bench.build(networks.doubled(), input_shapes={"x": (8, 4)}).signature.rows_max == 1


def test_a_batch_that_is_only_declared_is_a_warning_and_never_joined(bench):
    built = bench.build(networks.flattened_to_one_row(), simplify=True)

    assert built.signature.rows_max == 1
    assert ["fails with 2 rows" in text for text in built.warnings] == [True]


# --- shapes --------------------------------------------------------------------------------------------------------


def test_an_open_size_is_found_by_running_the_model(bench):
    bench.build(networks.square_only(32))


def test_a_size_that_cannot_be_found_is_asked_for_with_the_option_to_give(bench):
    error = bench.fail(networks.square_only(50), ShapesNeeded)

    assert "axis 2 of 'image'" in error.detail
    assert "-F opt_shapes=image:1x1x224x224" in error.hint


def test_a_size_that_is_given_is_used(bench):
    built = bench.build(networks.square_only(50), opt_shapes={"": (1, 1, 50, 50)})

    assert built.signature.ranges["image"].opt == (1, 1, 50, 50)


def test_shapes_that_the_model_itself_refuses_are_told_apart_from_those_that_contradict(bench):
    bench.fail(networks.square_only(50), SourceFailed, opt_shapes={"": (1, 1, 40, 40)})
    bench.fail(networks.square_only(50), ShapesContradict, opt_shapes={"": (1, 2, 50, 50)})


def test_a_largest_shape_that_the_model_refuses_fails_the_build(bench):
    shapes = {"min_shapes": {"x": (1, 4)}, "opt_shapes": {"x": (1, 4)}, "max_shapes": {"x": (2, 4)}}
    error = bench.fail(networks.flattened_to_one_row(), ShapesContradict, **shapes)

    assert "maximum" in error.detail and "max_shapes" in error.hint


# --- proof ---------------------------------------------------------------------------------------------------------


def test_indices_are_drawn_small_enough_for_the_table(bench):
    built = bench.build(networks.looked_up())

    assert built.accuracy.outputs[0].sqnr_db == 200
    assert built.signature.rows_max == 32


def test_a_model_with_random_operators_is_built_with_a_warning(bench):
    built = bench.build(networks.noisy(), simplify=True)

    assert built.accuracy.outputs == () and built.accuracy.samples >= 8
    assert ["random numbers" in text for text in built.warnings] == [True]


def test_an_engine_outside_the_tolerance_is_refused(bench):
    error = bench.fail(networks.convolved(), AccuracyLost, tolerance={"sqnr_db": 201})

    assert "'y'" in error.detail and "201" in error.detail


def test_a_half_precision_network_is_held_to_what_its_format_allows(bench):
    model = networks.normalised_convolution(np.float16)

    assert 40 < bench.build(model).accuracy.outputs[0].sqnr_db < 80
    bench.fail(model, AccuracyLost, tolerance={"sqnr_db": 80})


# --- what is refused -----------------------------------------------------------------------------------------------


def damaged(kind: str) -> bytes:
    whole = networks.convolved().SerializeToString()
    return {"truncated": whole[: len(whole) // 2], "garbage": os.urandom(999), "text": b"hello " * 999, "empty": b""}[
        kind
    ]


@pytest.mark.parametrize("kind", ["truncated", "garbage", "text", "empty"])
def test_a_file_that_is_no_whole_model_is_refused(bench, kind):
    bench.fail(damaged(kind), ModelInvalid)


def test_a_falsely_declared_shape_is_found_by_the_checker(bench):
    assert "checker" in bench.fail(networks.falsely_declared(), ModelInvalid).detail


def test_missing_operators_are_all_named(bench):
    error = bench.fail(networks.custom_operators(), OperatorUnsupported)

    assert "acme::Foo (2×)" in error.detail and "acme::Bar (1×)" in error.detail


def test_an_operator_of_onnx_that_does_not_exist_is_named(bench):
    model = networks.doubled()
    model.graph.node[0].op_type = "Doubel"

    assert "ai.onnx::Doubel (1×)" in bench.fail(model, OperatorUnsupported).detail


@pytest.mark.parametrize("location", ["weights.bin", "/etc/passwd", "../../secret"])
def test_weights_in_other_files_are_refused_and_never_looked_at(bench, location):
    error = bench.fail(networks.external_weights(location), ExternalDataMissing)

    assert "'two'" in error.detail and location not in error.detail
    assert "save_as_external_data=False" in error.hint


def test_a_text_input_is_refused_by_name(bench):
    assert "'x' is of type string" in bench.fail(networks.same(TensorProto.STRING), DTypeUnsupported).detail


def test_labels_and_recipes_that_do_not_fit_are_refused_before_anything_is_compiled(bench):
    bench.fail(networks.classifier(), LabelsContradict, labels=("a", "b"))
    bench.fail(networks.channel_means(), PreprocessContradicts, preprocess={"width": 9})

    assert not bench.work.engine.exists()


def test_an_engine_is_never_run_with_more_rows_than_the_service_joins(bench):
    built = bench.build(networks.doubled(), rows=2)

    assert built.signature.rows_max == 2
    assert bench.build(networks.doubled(), rows=1).signature.rows_max == 1
    assert any("leave no room" in text for text in bench.told(EventKind.STEP))  # nothing was joined to find out
