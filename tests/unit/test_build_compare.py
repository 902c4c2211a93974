from __future__ import annotations

import numpy as np
import pytest

from app.build.compare import Comparison, is_within, problems, refuse_outside
from app.domain.builds import INT8_TOLERANCE, Accuracy, LabelledAccuracy, OutputAccuracy, Tolerance
from app.domain.errors import AccuracyLost
from app.domain.tensors import DType, TensorSpec
from app.storage.codec import encode

Y = TensorSpec("y", DType.FLOAT32, (-1, -1))


def accuracy(reference, engine, classifier: bool = False) -> Accuracy:
    comparison = Comparison((Y,), classifier=classifier)
    comparison.add({"y": np.asarray(reference)}, {"y": np.asarray(engine)}, rows=1)
    return comparison.accuracy("reference")


def f32(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def test_equal_answers_are_perfect():
    (output,) = accuracy(f32(1, -2), f32(1, -2)).outputs

    assert (output.max_abs, output.max_rel, output.cosine, output.sqnr_db) == (0, 0, 1, 200)


def test_the_figures_follow_their_definitions():
    (output,) = accuracy(f32(3, 4), f32(3, 4.5)).outputs

    assert output.max_abs == 0.5
    assert output.max_rel == 0.125
    assert output.sqnr_db == pytest.approx(20)  # 10 · log10(25 / 0.25)
    assert output.cosine == pytest.approx((9 + 18) / (5 * np.sqrt(9 + 4.5**2)))


def test_a_wrong_scale_shows_in_the_noise_though_not_in_the_cosine():
    (output,) = accuracy(f32(1, 2, 3), f32(1.1, 2.2, 3.3)).outputs

    assert output.cosine == pytest.approx(1)
    assert output.sqnr_db == pytest.approx(20, abs=0.01)


def test_runs_add_up():
    comparison = Comparison((Y,), classifier=False)
    comparison.add({"y": f32(3)}, {"y": f32(3)}, rows=2)
    comparison.add({"y": f32(4)}, {"y": f32(4.5)}, rows=3)

    result = comparison.accuracy("reference")

    assert result.samples == 5
    assert result.outputs == accuracy(f32(3, 4), f32(3, 4.5)).outputs


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_integers_and_truth_values_are_compared_as_numbers(dtype):
    (output,) = accuracy(np.array([1, 0], dtype), np.array([0, 0], dtype)).outputs

    assert output.max_abs == 1


def test_empty_answers_are_equal():
    (output,) = accuracy(np.empty((0, 4), np.float32), np.empty((0, 4), np.float32)).outputs

    assert output.sqnr_db == 200


@pytest.mark.parametrize(("reference", "engine"), [((0, 0), (0, 1)), ((0, 1), (0, 0)), ((1e300, 1), (1e300, -1e300))])
def test_the_figures_stay_finite_whatever_the_answers(reference, engine):
    result = accuracy(np.array([reference]), np.array([engine]))

    assert "null" not in encode(result.outputs[0])
    with pytest.raises(AccuracyLost):
        refuse_outside(result, Tolerance())


def test_what_is_not_finite_in_the_model_must_be_the_same_in_the_engine_and_counts_no_further():
    nan, inf = np.nan, np.inf

    (output,) = accuracy(f32(nan, inf, -inf, 2), f32(nan, inf, -inf, 2)).outputs

    assert output.max_abs == 0
    for engine in (f32(nan, -inf, -inf, 2), f32(0, inf, -inf, 2), f32(nan, inf, -inf, nan), f32(nan, inf, -inf, inf)):
        with pytest.raises(AccuracyLost, match="'y'"):
            accuracy(f32(nan, inf, -inf, 2), engine)


@pytest.mark.parametrize("engine", [np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float64)])
def test_another_shape_or_dtype_is_an_accuracy_lost(engine):
    with pytest.raises(AccuracyLost, match="'y'"):
        accuracy(f32(0, 0), engine)


def test_agreement_is_the_share_of_rows_with_the_same_first_class():
    reference = np.array([[0, 9], [9, 0], [9, 0], [0, 9]], np.float32)
    engine = np.array([[1, 9], [9, 1], [9, 1], [9, 8]], np.float32)

    result = accuracy(reference, engine, classifier=True)

    assert (result.top1_agreement, result.top5_agreement, result.near_ties) == (0.75, 1, 0)


def test_the_first_class_may_be_among_the_first_five_only():
    reference = np.eye(8, dtype=np.float32)[:2]
    engine = np.array([[1, 2, 3, 4, 5, 0, 0, 0], [9, 1, 8, 7, 6, 5, 0, 0]], np.float32)

    assert accuracy(reference, engine, classifier=True).top5_agreement == 0.5


def test_near_ties_are_counted_apart():
    reference = np.array([[10, 0], [5.0, 5.1]], np.float32)
    engine = np.array([[10, 0], [5.1, 5.0]], np.float32)

    result = accuracy(reference, engine, classifier=True)

    assert (result.top1_agreement, result.near_ties) == (1, 1)


def test_labels_give_the_accuracy_of_both():
    reference, engine = np.array([[9, 0], [9, 0], [0, 9]]), np.array([[9, 0], [0, 9], [0, 9]])
    comparison = Comparison((Y,), classifier=True)

    comparison.add({"y": reference.astype(np.float32)}, {"y": engine.astype(np.float32)}, 3, [0, 0, None])

    assert comparison.accuracy("reference").labelled == LabelledAccuracy(samples=2, source=1.0, engine=0.5)


def test_the_refusal_names_the_output_and_the_figures():
    with pytest.raises(AccuracyLost, match=r"'y'.*20\.0 dB.*80") as caught:
        refuse_outside(accuracy(f32(3, 4), f32(3, 4.5)), Tolerance())

    assert "tolerance" in caught.value.hint


def test_a_wider_tolerance_lets_it_pass():
    refuse_outside(accuracy(f32(3, 4), f32(3, 4.5)), Tolerance(sqnr_db=19, cosine=0.9, max_rel=0.2))


def test_too_few_agreements_are_refused():
    lost = Accuracy((), 4, "random", "reference", top1_agreement=0.5)
    with pytest.raises(AccuracyLost, match=r"50\.0%"):
        refuse_outside(lost, Tolerance())


def test_every_output_outside_its_tolerance_is_told_the_worst_first():
    outputs = tuple(OutputAccuracy(name, 1, 1, 0.5, db) for name, db in (("a", 9), ("b", 3), ("c", 200)))

    told = problems(Accuracy(outputs, 1, "random", "reference"), Tolerance(cosine=0, max_rel=2))

    assert ["'b'" in told[0], "'a'" in told[1], len(told)] == [True, True, 2]


@pytest.mark.parametrize(
    "broken",
    [
        {"sqnr_db": 23, "cosine": 0.981},  # measured: the digits with ranges eight times too wide
        {"sqnr_db": 21, "cosine": 0.979},  # the input multiplied by 1.1
        {"sqnr_db": 16, "cosine": 0.988},  # a ResNet-50 with the colours swapped
        {"sqnr_db": 14},
        {"max_rel": 0.9},  # a number that has nothing to do with the model's
    ],
    ids=str,
)
def test_a_broken_int8_engine_is_outside_the_default_tolerance_and_a_sound_detector_within(broken):
    detector = {"name": "boxes", "max_abs": 140.0, "max_rel": 0.22, "cosine": 0.9997, "sqnr_db": 33.0}  # measured

    assert is_within(OutputAccuracy(**detector), INT8_TOLERANCE)
    assert not is_within(OutputAccuracy(**{**detector, **broken}), INT8_TOLERANCE)
