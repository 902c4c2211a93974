"""INT8, FP16 and auto: from the digits example and a ResNet-18 to engines whose accuracy was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.backends import registry
from app.backends.onnxruntime import OnnxRuntime
from app.build.candidates import fastest
from app.build.workdir import ProgressReader
from app.domain.builds import BuiltEngine, Int8Method, Placement, Precision, Ranging
from app.domain.errors import (
    AccuracyLost,
    CalibrationDegenerate,
    CalibrationMismatch,
    CalibrationRequired,
    CalibrationTooSmall,
    LabelsContradict,
    QuantiseFailed,
)
from app.domain.jobs import EventKind, Stage
from app.domain.tensors import DType
from tests import networks
from tests.bench import Bench
from tests.samples import archive, encoded, npy, npz, picture, pictures

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
MODEL = (DIGITS / "digits.onnx").read_bytes()
SAMPLES = DIGITS / "calibration.zip"
INT8 = {"precision": Precision.INT8}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "work")


def right(bench: Bench) -> float:
    """Share of the held-out third of the digits that the engine reads right."""
    held_out = np.load(DIGITS / "heldout.npz")
    images = held_out["images"][:, None].astype(np.float32) / 255
    return float((bench.run({"image": images})["logits"].argmax(axis=1) == held_out["labels"]).mean())


def digits(path: Path, brightness: float) -> Path:
    """Pictures for the digits network, black at 0."""
    files = {f"{n}.png": encoded((picture(n, 8, 8)[..., 0] * brightness).astype(np.uint8), ".png") for n in range(100)}
    return archive(path, files)


# --- INT8 ----------------------------------------------------------------------------------------------------------


def test_int8_digits_are_read_as_well_as_in_fp32_and_the_report_says_so(bench):
    bench.build(MODEL)
    before = right(bench)

    built = bench.build(MODEL, calibration=SAMPLES, simplify=True, **INT8)

    assert abs(right(bench) - before) <= 0.01
    assert (built.precision, built.int8_method) == (Precision.INT8, Int8Method.QDQ)
    assert built.accuracy.inputs == "held-back" and built.accuracy.samples == 60
    assert built.accuracy.labelled is not None and built.accuracy.labelled.samples == 60
    assert abs(built.accuracy.labelled.engine - built.accuracy.labelled.source) <= 0.01
    assert built.accuracy.outputs[0].sqnr_db < 60  # else it was not quantised
    assert built.size_bytes < len(MODEL) / 2
    assert built.signature.rows_max == 32 and built.warnings == ()


def test_the_stages_of_an_int8_build_are_told_in_their_order(bench):
    bench.build(MODEL, calibration=SAMPLES, **INT8)

    lines = list(ProgressReader(bench.work).new_lines())
    stages = [line.stage for line in lines if line.kind is EventKind.STAGE]
    assert stages == [Stage.INSPECT, Stage.SIMPLIFY, Stage.QUANTISE, Stage.COMPILE, Stage.VERIFY]


class Typed(OnnxRuntime):
    """Wants its graphs as TensorRT 11 does: every type said in them, Q/DQ nodes where its kernels read integers."""

    placement = Placement.TENSORRT


def test_int8_is_combined_with_float16_in_the_graph_where_there_are_no_flags_for_it(bench, monkeypatch):
    monkeypatch.setattr(registry, "chosen", lambda name: Typed())

    built = bench.build(MODEL, calibration=SAMPLES, **INT8)

    graph = onnx.load(bench.work.candidates / "int8-qdq.half.onnx").graph
    weights = {tensor.data_type for tensor in graph.initializer}
    assert TensorProto.FLOAT16 in weights and TensorProto.FLOAT not in weights
    assert {node.op_type for node in graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    assert built.accuracy.outputs[0].sqnr_db > 25 and built.signature.inputs[0].dtype is DType.FLOAT32


@pytest.mark.parametrize("ranging", list(Ranging))
def test_every_ranging_keeps_the_digits(bench, ranging):
    built = bench.build(MODEL, calibration=SAMPLES, int8_ranging=ranging, **INT8)

    assert built.accuracy.outputs[0].sqnr_db > 25


def test_a_second_int8_build_skips_the_calibration(bench):
    first = bench.build(MODEL, calibration=SAMPLES, **INT8)
    second = bench.build(MODEL, calibration=SAMPLES, **INT8)

    assert first.accuracy == second.accuracy
    assert any("calibration skipped" in text for text in bench.told(EventKind.STEP))

    bench.build(MODEL, calibration=SAMPLES, int8_ranging=Ranging.PERCENTILE, **INT8)
    assert not any("calibration skipped" in text for text in bench.told(EventKind.STEP))


def test_kept_ranges_that_are_damaged_are_measured_again(bench):
    first = bench.build(MODEL, calibration=SAMPLES, **INT8)
    (kept,) = bench.cache.glob("ranges-*.json")
    kept.write_text(kept.read_text()[:50])

    assert bench.build(MODEL, calibration=SAMPLES, **INT8).accuracy == first.accuracy


def test_a_model_of_several_inputs_calibrates_on_tensors(bench, tmp_path):
    random = np.random.default_rng(1)
    a, b = random.normal(0, 1, (2, 60, 2)).astype(np.float32)
    model = networks.network(
        [
            helper.make_node("MatMul", ["a", "w"], ["c"]),
            helper.make_node("Add", ["c", "b"], ["d"]),
            helper.make_node("MatMul", ["d", "w"], ["y"]),
        ],
        [networks.value(name, ["rows", 2]) for name in ("a", "b")],
        [networks.value("y", ["rows", 2])],
        [networks.constant("w", np.array([[1, 0.5], [-0.5, 2]], np.float32))],
    )

    built = bench.build(model, calibration=archive(tmp_path / "a.zip", {"all.npz": npz(a=a, b=b)}), **INT8)

    assert built.accuracy.inputs == "held-back" and built.accuracy.samples == 12
    assert 25 < built.accuracy.outputs[0].sqnr_db < 60
    assert ["Only 60 samples" in text for text in built.warnings] == [True]


def test_a_fixed_batch_calibrates_on_whole_batches(bench, tmp_path):
    model = networks.resnet18(8, 32, 10, rows=3)

    built = bench.build(model, calibration=pictures(tmp_path / "a.zip", 100, side=32), simplify=True, **INT8)

    assert built.accuracy.samples >= 20 and built.accuracy.outputs[0].sqnr_db > 20


def test_int8_engines_of_images_that_are_folded_take_pixels(bench):
    built = bench.build(MODEL, calibration=SAMPLES, fold_preprocess=True, **INT8)

    images = np.load(DIGITS / "heldout.npz")
    answer = bench.run({"image": images["images"][..., None]})["logits"]
    assert (answer.argmax(axis=1) == images["labels"]).mean() > 0.98
    assert built.accuracy.labelled is not None and built.accuracy.labelled.engine > 0.98


# --- what INT8 refuses -----------------------------------------------------------------------------------------------


def test_int8_without_samples_is_refused(bench):
    bench.fail(MODEL, CalibrationRequired, **INT8)


def test_too_few_samples_are_refused_with_their_number(bench, tmp_path):
    files = {f"{n}.png": encoded(picture(n), ".png") for n in range(31)} | {
        "broken.png": b"x",
        "phone.heic": b"x",
        "b.heic": b"x",
    }
    error = bench.fail(MODEL, CalibrationTooSmall, calibration=archive(tmp_path / "a.zip", files), **INT8)

    assert "31 usable" in error.detail and "needs 32" in error.detail and "broken.png" in error.detail
    assert "2 are of other kinds: 'phone.heic' first." in error.detail


def test_unreadable_samples_are_a_warning_that_counts_and_names_them(bench, tmp_path):
    path = digits(tmp_path / "a.zip", 1)
    files = {"broken.png": b"x", "cut.jpg": encoded(picture(1))[:50]}
    with_broken = archive(
        tmp_path / "b.zip", files | {f"{n}.png": encoded(picture(n, 8, 8), ".png") for n in range(100)}
    )
    assert bench.build(MODEL, calibration=path, **INT8).warnings == ()

    (warning,) = bench.build(MODEL, calibration=with_broken, **INT8).warnings

    assert warning.startswith("2 files") and "broken.png" in warning and "cut.jpg" in warning


def test_samples_of_another_shape_are_refused(bench, tmp_path):
    path = archive(tmp_path / "a.zip", {"x.npy": npy(np.zeros((40, 3, 9, 9), np.float32))})

    error = bench.fail(MODEL, CalibrationMismatch, calibration=path, **INT8)

    assert "float32 40x3x9x9" in error.detail and "float32 1x8x8" in error.detail


def test_images_for_a_model_that_takes_tensors_are_refused(bench, tmp_path):
    bench.fail(networks.classifier(), CalibrationMismatch, calibration=pictures(tmp_path / "a.zip", 40), **INT8)


def test_inputs_without_rows_in_common_have_no_samples(bench, tmp_path):
    model = networks.network(
        [helper.make_node("MatMul", ["a", "b"], ["y"])],
        [networks.value("a", [2, 3]), networks.value("b", [3, 4])],
        [networks.value("y", [2, 4])],
    )
    path = archive(tmp_path / "a.zip", {"x.npz": npz(a=np.ones((2, 3), np.float32), b=np.ones((3, 4), np.float32))})

    assert "share" in bench.fail(model, CalibrationMismatch, calibration=path, **INT8).detail
    assert bench.build(model, calibration=path).accuracy.inputs == "random"


def test_labels_that_do_not_match_the_classes_are_refused(bench, tmp_path):
    files = {f"{n % 11}/{n}.png": encoded(picture(n), ".png") for n in range(44)}

    error = bench.fail(MODEL, LabelsContradict, calibration=archive(tmp_path / "a.zip", files), **INT8)

    assert "'10'" in error.detail


def test_all_black_images_are_caught(bench, tmp_path):
    black = archive(tmp_path / "a.zip", {f"{n}.png": encoded(np.zeros((8, 8), np.uint8), ".png") for n in range(100)})
    noisy = np.random.default_rng(0).integers(0, 3, (100, 8, 8), np.uint8)
    nearly = archive(tmp_path / "b.zip", {f"{n}.png": encoded(image, ".png") for n, image in enumerate(noisy)})

    assert "only 1 differ" in bench.fail(MODEL, CalibrationDegenerate, calibration=black, **INT8).detail
    assert "blank" in bench.fail(MODEL, CalibrationDegenerate, calibration=nearly, **INT8).detail


def test_dark_images_are_caught_by_the_gate_though_those_held_back_are_as_dark(bench, tmp_path):
    error = bench.fail(MODEL, AccuracyLost, calibration=digits(tmp_path / "a.zip", 0.1), **INT8)

    assert "full contrast" in error.detail and "samples" in error.hint
    assert list(bench.work.candidates.glob("*.bin")) and not bench.work.engine.exists()


def test_a_sound_int8_detector_is_within_the_default_tolerance(bench, tmp_path):
    built = bench.build(networks.detector(), calibration=pictures(tmp_path / "a.zip", 100), **INT8)

    (boxes,) = built.accuracy.outputs
    assert boxes.sqnr_db > 25 and boxes.max_rel > 0.1  # of 25,600 numbers, a few boxes jump


def test_a_detector_calibrated_on_dark_or_black_pictures_is_caught(bench, tmp_path):
    dark = {f"{n}.png": encoded((picture(n) * 0.1).astype(np.uint8), ".png") for n in range(60)}
    black = {f"{n}.png": encoded(np.zeros((64, 64, 3), np.uint8), ".png") for n in range(60)}

    error = bench.fail(networks.detector(), AccuracyLost, calibration=archive(tmp_path / "a.zip", dark), **INT8)
    assert "full contrast" in error.detail
    bench.fail(networks.detector(), CalibrationDegenerate, calibration=archive(tmp_path / "b.zip", black), **INT8)


def test_a_model_that_reads_the_samples_no_better_than_chance_is_a_warning(bench, tmp_path):
    files = {f"{9 - n % 10}/{n}.png": encoded(picture(n), ".png") for n in range(100)}

    built = bench.build(MODEL, calibration=archive(tmp_path / "a.zip", files), precision=Precision.FP32)

    assert any("better than guessing" in text for text in built.warnings)


def test_a_model_without_a_layer_for_int8_is_refused(bench, tmp_path):
    path = archive(tmp_path / "a.zip", {"x.npy": npy(np.random.default_rng(1).random((40, 4), np.float32))})

    bench.fail(networks.doubled(), QuantiseFailed, calibration=path, **INT8)


def hidden_outlier() -> onnx.ModelProto:
    """Four layers; the second multiplies one channel by a thousand, the third takes that back: too much for 8 bits."""
    random = np.random.default_rng(5)
    weights = [random.normal(0, 0.35, (8, 8)).astype(np.float32) for _ in range(4)]
    weights[1][:, 0] *= 1000
    weights[2][0, :] /= 1000
    tensors = ["x", "a", "b", "c", "y"]
    return networks.network(
        [helper.make_node("MatMul", [tensors[n], f"w{n}"], [tensors[n + 1]], name=f"layer{n}") for n in range(4)],
        [networks.value("x", ["rows", 8])],
        [networks.value("y", ["rows", 8])],
        [networks.constant(f"w{n}", weight) for n, weight in enumerate(weights)],
    )


def test_the_worst_layers_of_a_refused_engine_are_named(bench, tmp_path):
    samples = np.random.default_rng(1).normal(0, 1, (100, 8)).astype(np.float32)

    error = bench.fail(
        hidden_outlier(), AccuracyLost, calibration=archive(tmp_path / "a.zip", {"x.npy": npy(samples)}), **INT8
    )

    assert "SQNR" in error.detail
    named = error.detail.partition("Worst layers: ")[2]
    assert named.startswith(("layer1", "layer2"))
    assert "int8_ranging" in error.hint


# --- FP16 and FP32 ---------------------------------------------------------------------------------------------------


def test_fp16_keeps_the_types_of_inputs_and_outputs(bench):
    built = bench.build(MODEL, precision=Precision.FP16)

    assert built.precision is Precision.FP16
    assert {spec.dtype.value for spec in (*built.signature.inputs, *built.signature.outputs)} == {"float32"}
    assert 40 < built.accuracy.outputs[0].sqnr_db < 100
    assert right(bench) > 0.98


def test_fp16_engines_of_images_that_are_folded_take_pixels(bench):
    built = bench.build(MODEL, fold_preprocess=True, precision=Precision.FP16)

    assert built.signature.inputs[0].dtype.value == "uint8"
    assert 50 < built.accuracy.outputs[0].sqnr_db < 110


def test_fp16_that_overflows_is_refused(bench):
    model = networks.classifier()
    model.graph.initializer[0].CopyFrom(networks.constant("weights", networks.CLASSIFIER_WEIGHTS * 1e5))

    error = bench.fail(model, AccuracyLost, precision=Precision.FP16)

    assert "logits" in error.detail


def test_fp32_is_proven_on_samples_too_when_there_are_any(bench):
    built = bench.build(MODEL, calibration=SAMPLES)

    assert built.accuracy.inputs == "held-back" and built.accuracy.samples >= 100
    assert built.accuracy.outputs[0].sqnr_db > 80


def test_an_archive_that_fp32_cannot_use_is_a_warning(bench, tmp_path):
    path = archive(tmp_path / "a.zip", {"broken.png": b"x"})

    built = bench.build(MODEL, calibration=path)

    assert built.accuracy.inputs == "random"
    assert any("not used" in text for text in built.warnings)


# --- auto ------------------------------------------------------------------------------------------------------------


def published_as_the_rule_says(built: BuiltEngine) -> bool:
    accepted = [one for one in built.candidates if one.accepted]
    times = [one.latency.p50_ms for one in accepted if one.latency is not None]
    chosen = next(one for one, ms in zip(accepted, times, strict=True) if ms <= 1.05 * min(times))
    return (built.precision, built.int8_method) == (chosen.precision, chosen.int8_method)


def test_auto_compares_everything_and_publishes_the_fastest(bench):
    built = bench.build(MODEL, calibration=SAMPLES, precision=Precision.AUTO)

    assert [(one.precision.value, one.accepted) for one in built.candidates] == [
        ("fp32", True),
        ("fp16", True),
        ("int8", True),
    ]
    assert all(one.accuracy and one.latency and one.size_bytes and one.built_in_s for one in built.candidates)
    assert published_as_the_rule_says(built)
    (published,) = [one for one in built.candidates if one.precision is built.precision]
    assert (published.accuracy, published.size_bytes) == (built.accuracy, bench.work.engine.stat().st_size)
    assert right(bench) > 0.98


def test_auto_without_samples_says_why_there_is_no_int8(bench):
    built = bench.build(MODEL, precision=Precision.AUTO)

    int8 = built.candidates[-1]
    assert (int8.precision, int8.accepted, int8.latency) == (Precision.INT8, False, None)
    assert "samples" in int8.reason
    assert built.precision in (Precision.FP32, Precision.FP16) and built.warnings == ()


def test_auto_refuses_what_is_outside_its_tolerance_and_reports_its_figures(bench, tmp_path):
    samples = np.random.default_rng(1).normal(0, 1, (100, 8)).astype(np.float32)
    path = archive(tmp_path / "a.zip", {"x.npy": npy(samples)})

    built = bench.build(hidden_outlier(), calibration=path, precision=Precision.AUTO)

    int8 = built.candidates[-1]
    assert not int8.accepted and "SQNR" in int8.reason
    assert int8.accuracy is not None and int8.latency is not None
    assert built.precision is not Precision.INT8 and built.warnings == ()


def test_auto_fails_when_nothing_stays_within_its_tolerance(bench):
    error = bench.fail(MODEL, AccuracyLost, precision=Precision.AUTO, tolerance={"sqnr_db": 201})

    assert "fp32:" in error.detail and "fp16:" in error.detail


def test_auto_on_a_resnet_finds_an_engine_within_its_tolerance(bench, tmp_path):
    model = networks.resnet18(16, 64, 100)

    built = bench.build(model, calibration=pictures(tmp_path / "a.zip", 100), precision=Precision.AUTO, simplify=True)

    assert [one.accepted for one in built.candidates] == [True, True, True]
    assert published_as_the_rule_says(built)


def test_auto_keeps_the_warnings_of_the_engine_that_is_published_and_no_others(bench):
    built = bench.build(networks.noisy(), precision=Precision.AUTO)

    assert ["random numbers" in text for text in built.warnings] == [True]
    assert [one.accepted for one in built.candidates] == [True, True, False]


def test_of_equally_fast_engines_the_most_precise_is_published():
    from types import SimpleNamespace

    made = [SimpleNamespace(proof=SimpleNamespace(latency=SimpleNamespace(p50_ms=ms))) for ms in (1.04, 1.02, 1.0)]
    slower = [SimpleNamespace(proof=SimpleNamespace(latency=SimpleNamespace(p50_ms=ms))) for ms in (1.2, 1.02, 1.0)]

    assert fastest(made) is made[0]
    assert fastest(slower) is slower[1]


def test_a_model_that_is_quantised_already_is_not_quantised_again(bench):
    scale, zero = networks.constant("s", np.float32(0.05)), networks.constant("z", np.int8(0))
    model = networks.classifier()
    model.graph.initializer.extend([scale, zero])
    model.graph.node[0].input[0] = "dq"
    for kind, source, target in (("DequantizeLinear", "q", "dq"), ("QuantizeLinear", "x", "q")):
        model.graph.node.insert(0, helper.make_node(kind, [source, "s", "z"], [target]))

    built = bench.build(model, precision=Precision.AUTO)

    assert Precision.INT8 not in [one.precision for one in built.candidates]
    assert numpy_helper.to_array(onnx.load(bench.work.model).graph.initializer[0]).shape == (4, 3)
