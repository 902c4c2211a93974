"""How the answer of a classifier reads, and which answers can be put together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app.domain.builds import EngineRecord
from app.domain.errors import InvalidRequest
from app.domain.tensors import ANY, DType, Signature, TensorSpec
from app.serving.answers import PREDICTIONS_MAX, Ranked, check_by_row, concatenated, top_k
from tests.fakes import engine_record


def classifier(labels: tuple[str, ...] = (), dtype: DType = DType.FLOAT32) -> EngineRecord:
    signature = Signature((), (TensorSpec("scores", dtype, (ANY, 3)),))
    return engine_record(signature=signature, labels=labels)


def scores(*rows: list[float]) -> dict[str, np.ndarray]:
    return {"scores": np.array(rows, np.float32)}


def test_the_best_classes_come_first_with_their_labels() -> None:
    ranked = top_k(scores([0.25, 0.5, 0.25], [0.75, 0.0, 0.25]), classifier(("cat", "dog", "owl")), 2)

    assert ranked == [
        [Ranked(1, "dog", 0.5, 0.5), Ranked(0, "cat", 0.25, 0.25)],
        [Ranked(0, "cat", 0.75, 0.75), Ranked(2, "owl", 0.25, 0.25)],
    ]


def test_logits_become_probabilities_by_softmax() -> None:
    (row,) = top_k(scores([0, np.log(2), np.log(5)]), classifier(), 3) or []

    assert [item.index for item in row] == [2, 1, 0]
    np.testing.assert_allclose([item.probability for item in row], [5 / 8, 2 / 8, 1 / 8], rtol=1e-6)
    np.testing.assert_allclose([item.score for item in row], [np.log(5), np.log(2), 0], rtol=1e-6)


def test_huge_logits_do_not_overflow() -> None:
    (row,) = top_k(scores([1e30, 0, -1e30]), classifier(), 3) or []

    assert [item.probability for item in row] == [1, 0, 0]


def test_one_row_of_logits_makes_all_rows_logits() -> None:
    first, _ = top_k(scores([1, 0, 0], [3, 4, 5]), classifier(), 1) or []

    np.testing.assert_allclose(first[0].probability, np.e / (np.e + 2))


def test_half_precision_probabilities_are_recognised_in_spite_of_their_rounding() -> None:
    outputs = {"scores": np.array([[0.334, 0.334, 0.335]], np.float16)}

    (row,) = top_k(outputs, classifier(dtype=DType.FLOAT16), 1) or []

    assert row[0].probability == row[0].score


def test_more_classes_than_there_are_means_all_of_them() -> None:
    (row,) = top_k(scores([1, 2, 3]), classifier(), 10) or []

    assert [item.index for item in row] == [2, 1, 0]


def test_a_class_without_a_label_has_none() -> None:
    (row,) = top_k(scores([1, 2, 3]), classifier(("only",)), 3) or []

    assert [item.label for item in row] == [None, None, "only"]


def test_of_equal_scores_the_lower_index_comes_first() -> None:
    (row,) = top_k(scores([7, 7, 7]), classifier(), 3) or []

    assert [item.index for item in row] == [0, 1, 2]


def test_scores_that_are_no_numbers_rank_last_and_break_nothing() -> None:
    (row,) = top_k(scores([np.nan, np.inf, 1]), classifier(), 3) or []

    assert [item.index for item in row] == [1, 2, 0]


def test_more_classes_than_an_answer_may_name_are_refused() -> None:
    rows = np.zeros((PREDICTIONS_MAX // 2 + 1, 3), np.float32)

    with pytest.raises(InvalidRequest, match=f"{len(rows) * 2} classes, 2 for each of {len(rows)} rows"):
        top_k({"scores": rows}, classifier(), 2)


def test_an_engine_that_is_no_classifier_has_no_ranking() -> None:
    assert top_k({"y": np.zeros((1, 3), np.float32)}, replace_outputs((1, 3, 3)), 3) is None


def replace_outputs(shape: tuple[int, ...]) -> EngineRecord:
    record = classifier()
    signature = Signature((), (TensorSpec("y", DType.FLOAT32, shape),))
    return replace(record, built=replace(record.built, signature=signature))


def test_answers_of_several_runs_are_put_one_after_another() -> None:
    assert concatenated([scores([1, 2, 3]), scores([4, 5, 6])])["scores"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_single_answer_is_not_copied() -> None:
    only = scores([1, 2, 3])

    assert concatenated([only]) is only


@pytest.mark.parametrize("shape", [(), (2,), (0, 4)])
def test_an_answer_without_one_row_for_each_image_cannot_be_put_behind_another(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="cannot be told apart"):
        check_by_row({"boxes": np.zeros(shape)}, 1)
