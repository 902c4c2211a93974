"""What an inference answers, and how the answer of a classifier reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import NamedTuple

import numpy as np

from app.domain.builds import EngineRecord
from app.domain.errors import InvalidRequest
from app.domain.tensors import DType, Tensor, Tensors, shape_text

PREDICTIONS_MAX = 1 << 18  # in one answer; each takes about 250 bytes until it is JSON


class Answer(NamedTuple):
    """One for every request: a frozen dataclass takes three times as long to make."""

    engine: EngineRecord
    outputs: Tensors  # by name, in the model's order
    timings_ms: Mapping[str, float]  # preprocess (images only), load (wait for a warm engine), queue, compute, total
    batch_rows: int  # rows of the largest run that took part, neighbours' rows included


@dataclass(frozen=True)
class Ranked:
    """One class of one row."""

    index: int
    label: str | None  # None: the engine has no label for it
    score: float  # the engine's own value
    probability: float  # 0..1


def check_predictions(rows: int, each: int) -> None:
    """Refuse to name more classes than one answer may hold.

    Raises:
        InvalidRequest: they are more.
    """
    if rows * each > PREDICTIONS_MAX:
        raise InvalidRequest(
            f"The answer would name {rows * each} classes, {each} for each of {rows} rows; the most is"
            f" {PREDICTIONS_MAX}.",
            hint="Ask for fewer, send fewer rows, or ask for the output itself as bytes.",
        )


def top_k(outputs: Tensors, record: EngineRecord, k: int) -> list[list[Ranked]] | None:
    """The best k classes of each row, best first; of equal scores, the lower index first.

    The probability is the score itself where all rows are probabilities already (none below 0, each sum about 1),
    else the softmax over the row.

    Args:
        k: at least 1; more than there are classes means all.

    Returns:
        None unless the engine is a classifier.

    Raises:
        InvalidRequest: they are more than an answer may name.
    """
    signature = record.built.signature
    if not signature.is_classifier:
        return None
    spec = signature.outputs[0]
    check_predictions(len(outputs[spec.name]), min(k, outputs[spec.name].shape[1]))
    atol = 1e-2 if spec.dtype is DType.FLOAT16 else 1e-3
    # In few steps: after a run on all processors, each of them takes thirty times as long as else.
    rows = [(row, (-row).argsort(kind="stable")) for row in outputs[spec.name].astype(np.float64)]  # NaN comes last
    are_shares = all(row[order[-1]] >= 0 and abs(np.add.reduce(row) - 1) <= atol for row, order in rows)
    return [_ranked(row, order[: max(1, k)], record.built.labels, are_shares) for row, order in rows]


def concatenated(parts: Sequence[Tensors]) -> Tensors:
    """The outputs of several runs, one after another along axis 0."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_by_row(outputs: Tensors, rows: int) -> None:
    """Refuse outputs that cannot be put behind those of another run.

    Raises:
        InvalidRequest: an output does not have one row for each row of its run: nobody could tell whose is whose.
    """
    for name, output in outputs.items():
        if output.ndim == 0 or output.shape[0] != rows:
            raise InvalidRequest(
                f"The output {name!r} has shape {shape_text(output.shape)} for a run of {rows} rows; the answers of"
                " several runs cannot be told apart.",
                hint="Send one image in each request.",
            )


def _ranked(row: Tensor, best: Tensor, labels: Sequence[str], are_shares: bool) -> list[Ranked]:
    """
    Args:
        best: indices into the row, best first.
        are_shares: the row holds probabilities.
    """
    scores: list[float] = row[best].tolist()
    shares = scores
    if not are_shares:
        shares = [nan] * len(scores)
        if isfinite(scores[0]):  # infinite scores have no softmax
            powers = np.exp(row - scores[0])
            shares = (powers[best] / np.add.reduce(powers)).tolist()
    return [
        Ranked(index, labels[index] if index < len(labels) else None, score, share)
        for index, score, share in zip(best.tolist(), scores, shares, strict=True)
    ]
