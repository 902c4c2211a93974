from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from app.backends import onnxruntime_tactics as tactics
from app.domain.tensors import ANY, DType, ShapeRange, Signature, TensorSpec

ANSWER = np.array([1, -2, 4], np.float32)


class Clock:
    """Time that passes only while a session runs."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class Session:
    def __init__(self, clock: Clock, seconds: Sequence[float], answer: np.ndarray) -> None:
        self._clock, self._seconds, self._answer, self._runs = clock, seconds, answer, 0

    def run(self, outputs: None, inputs: object) -> list[np.ndarray]:
        self._clock.now_s += self._seconds[min(self._runs, len(self._seconds) - 1)]
        self._runs += 1
        return [self._answer]


class Failing(Session):
    def run(self, outputs: None, inputs: object) -> list[np.ndarray]:
        raise RuntimeError("no kernel")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tactics, "time", clock)
    return clock


@pytest.fixture
def verdict(clock: Clock) -> Callable[..., tactics.Verdict]:
    def given(
        plain_s: dict[int, Sequence[float]],
        other_s: dict[int, Sequence[float]],
        answer: Any = ANSWER,
        kind: Any = Session,
    ) -> tactics.Verdict:
        ways = [
            lambda threads: Session(clock, plain_s[threads], ANSWER),
            lambda threads: kind(clock, other_s[threads], np.asarray(answer)),
        ]
        return tactics.compared(ways, [{}], list(plain_s))

    return given


def test_the_way_of_shorter_runs_is_the_faster_one(verdict):
    found = verdict({1: [0.020], 4: [0.006]}, {1: [0.016], 4: [0.0054]})

    assert found.is_always_faster and found.is_faster_with_one_thread
    assert str(found) == "always: 0.80 of the time with 1 thread(s), 0.90 of the time with 4 thread(s)"


def test_a_gain_within_the_noise_is_none(verdict):
    found = verdict({1: [0.020]}, {1: [0.0196]})

    assert not found.is_always_faster and not found.is_faster_with_one_thread
    assert str(found) == "never: 0.98 of the time with 1 thread(s)"


def test_a_run_now_and_then_that_something_else_made_longer_does_not_count(verdict):
    assert verdict({1: [0.020]}, {1: [0.016, 0.016, 0.1, 0.016, 0.016, 0.2, 0.016]}).is_always_faster


def test_a_way_may_be_faster_with_one_thread_only(verdict):
    found = verdict({1: [0.020], 4: [0.006]}, {1: [0.016], 4: [0.0063]})

    assert found.is_faster_with_one_thread and not found.is_always_faster
    assert str(found).startswith("in runs of one thread: 0.80 ")


def test_long_runs_are_tried_twice_each_and_no_more(verdict, clock):
    assert verdict({1: [10.0]}, {1: [8.0]}).is_always_faster
    assert clock.now_s == 3 * 18.0  # one of each tells whether the answers agree


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER * np.float32(1.0001),
        [1, -2, np.nan],
        [1, -2],
    ],
    ids=["off by a ten thousandth", "not a number", "another shape"],
)
def test_a_way_that_answers_otherwise_is_never_taken(verdict, answer):
    found = verdict({1: [0.020]}, {1: [0.001]}, answer=np.asarray(answer))

    assert not found.is_always_faster and not found.is_faster_with_one_thread
    assert str(found) == "never: it does not answer as the network does"


def test_a_way_that_fails_is_never_taken(verdict):
    assert not verdict({1: [0.020]}, {1: [0.001]}, kind=Failing).is_faster_with_one_thread


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs, ())


def shapes(*inputs: TensorSpec, **ranges: ShapeRange) -> list[dict[str, tuple[int, ...]]]:
    made = tactics.made_up(Signature(inputs, ()), ranges)
    return [{name: array.shape for name, array in given.items()} for given in made]


def test_inputs_are_made_up_for_one_row_and_for_three():
    pixels = TensorSpec("pixels", DType.UINT8, (ANY, 4, 4, 3))
    values = TensorSpec("values", DType.FLOAT32, (2, 5))

    assert shapes(pixels, values) == [{"pixels": (rows, 4, 4, 3), "values": (2, 5)} for rows in (1, 3)]


def test_made_up_inputs_are_of_the_right_type_and_tokens_such_as_every_table_has():
    names = {"pixels": DType.UINT8, "values": DType.FLOAT32, "tokens": DType.INT64}
    specs = tuple(TensorSpec(name, dtype, (ANY, 7)) for name, dtype in names.items())

    made = tactics.made_up(Signature(specs, ()), {})[0]

    assert {name: array.dtype for name, array in made.items()} == {name: dtype.numpy for name, dtype in names.items()}
    assert made["pixels"].std() > 0 and made["values"].std() > 0 and not made["tokens"].any()


def test_inputs_have_the_shape_that_the_build_prefers():
    spec = TensorSpec("x", DType.FLOAT32, (ANY, 3, ANY, ANY))

    found = shapes(spec, x=ShapeRange((1, 3, 8, 8), (4, 3, 16, 16), (8, 3, 32, 32)))

    assert found == [{"x": (4, 3, 16, 16)}, {"x": (4, 3, 16, 16)}]


def test_inputs_of_unknown_lengths_are_not_made_up():
    assert shapes(TensorSpec("x", DType.FLOAT32, (ANY, ANY))) == []
