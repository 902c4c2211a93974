"""The shapes that a network is exported at: asked for, in the file, or found by trying. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from app.build.export.clues import LENGTH, SIDE, Clue
from app.build.export.messages import AskedShapes
from app.domain.errors import BuildFailed, ShapesNeeded, SourceFailed
from app.domain.tensors import DType, Shape, ShapeRange, Tensor, Tensors, shape_text

_SIDES = (8, 16, 24, 28, 32, 48, 56, 64, 84, 96, 112, 128, 160, 192, 224, 227, 256, 299, 320, 384, 416, 448, 512, 640)
_SAME_WITHIN = 1.2  # sizes so close may differ only in what a pooling layer drops
_SUGGESTED_SIDE, _SUGGESTED_LENGTH = 224, 16
_SEED = 20_261_122

Shapes = Mapping[str, Shape]


class Runnable(Protocol):
    @property
    def inputs(self) -> tuple[str, ...]: ...

    def run(self, inputs: Tensors) -> Tensors: ...


@dataclass(frozen=True)
class Input:
    """One input as the export sees it."""

    name: str
    dtype: DType
    shape: Shape  # of the example
    below: int = 2  # what integers must be smaller than


@dataclass(frozen=True)
class _Guess:
    name: str
    axes: Shape | None  # with SIDE and LENGTH; None: nothing is known
    dtype: DType
    is_sure: bool  # of the dtype
    below: int


def found_inputs(
    network: Runnable, asked: AskedShapes, known: Mapping[str, tuple[DType, Shape]], clues: Mapping[str, Clue]
) -> tuple[Input, ...]:
    """The inputs at shapes and dtypes that the network really takes.

    Args:
        known: dtype and shape by input, from the file itself.
        clues: what the graph tells of the others.

    Raises:
        ShapesNeeded: nothing says them, or many would do; names the inputs and the option that would answer.
        ShapesContradict: the request names an input that is not there.
        SourceFailed: the network fails at the shapes that were asked for.
    """
    wanted = asked.by_input(network.inputs)
    guesses = [_guess(name, wanted, known, clues.get(name)) for name in network.inputs]
    if any(guess.axes is None for guess in guesses):
        raise _needed(guesses, "the file says nothing about it", 0)
    free = {length for guess in guesses for length in guess.axes or () if length in (SIDE, LENGTH)}
    if LENGTH in free:
        raise _needed(guesses, "any length may do", _accepted_suggestion(network, guesses))
    if SIDE in free:
        return _resolved(guesses, _only_side(network, guesses))
    return _running(network, guesses)


def random_inputs(inputs: tuple[Input, ...], shapes: Shapes, seed: int) -> Tensors:
    """Inputs of these shapes: floats from a normal distribution, integers from zero to what the input allows."""
    generator = np.random.default_rng((_SEED, seed))
    return {spec.name: _random(spec, shapes[spec.name], generator) for spec in inputs}


def _guess(
    name: str, wanted: Mapping[str, ShapeRange], known: Mapping[str, tuple[DType, Shape]], clue: Clue | None
) -> _Guess:
    axes = wanted[name].opt if name in wanted else known[name][1] if name in known else clue.axes if clue else None
    dtype = known[name][0] if name in known else clue.dtype if clue else DType.FLOAT32
    return _Guess(name, axes, dtype, name in known or clue is not None, clue.below if clue else 2)


def _running(network: Runnable, guesses: list[_Guess]) -> tuple[Input, ...]:
    """The guesses, where the network takes them; integers in place of floats that nothing spoke for."""
    inputs = _resolved(guesses, 0)
    try:
        _try(network, inputs)
    except SourceFailed:
        unsure = [guess for guess in guesses if not guess.is_sure]
        integers = tuple(
            Input(spec.name, DType.INT64, spec.shape) if guess in unsure else spec
            for guess, spec in zip(guesses, inputs, strict=True)
        )
        if not unsure or not _takes(network, integers):
            raise
        return integers
    return inputs


def _only_side(network: Runnable, guesses: list[_Guess]) -> int:
    """The one height and width that the network takes.

    Raises:
        ShapesNeeded: it takes several, or none of those that were tried.
    """
    accepted: list[int] = []
    for side in _SIDES:
        if _takes(network, _resolved(guesses, side)):
            accepted.append(side)
        if accepted and accepted[-1] > _SAME_WITHIN * accepted[0]:
            raise _needed(guesses, "the network takes images of many sizes", _accepted_suggestion(network, guesses))
    if not accepted:
        raise _needed(guesses, f"no square size tried from {_SIDES[0]} to {_SIDES[-1]} fits", 0)
    return min(accepted, key=lambda side: (side % 32 != 0, side % 8 != 0, side))


def _accepted_suggestion(network: Runnable, guesses: list[_Guess]) -> int:
    """A side that the network takes; 0 when the usual ones are refused."""
    usual = (_SUGGESTED_SIDE, 256, 128, 64, 32)
    return next((side for side in usual if _takes(network, _resolved(guesses, side))), 0)


def _resolved(guesses: list[_Guess], side: int) -> tuple[Input, ...]:
    return tuple(
        Input(guess.name, guess.dtype, tuple(_concrete(guess.axes or (), side)), guess.below) for guess in guesses
    )


def _concrete(axes: Shape, side: int) -> Iterator[int]:
    for length in axes:
        yield side or _SUGGESTED_SIDE if length == SIDE else _SUGGESTED_LENGTH if length == LENGTH else length


def _takes(network: Runnable, inputs: tuple[Input, ...]) -> bool:
    try:
        _try(network, inputs)
    except BuildFailed:
        return False
    return True


def _try(network: Runnable, inputs: tuple[Input, ...]) -> None:
    network.run(random_inputs(inputs, {spec.name: spec.shape for spec in inputs}, seed=0))


def _random(spec: Input, shape: Shape, generator: np.random.Generator) -> Tensor:
    if spec.dtype.is_float:
        return np.asarray(generator.standard_normal(shape), spec.dtype.numpy)
    below = 2 if spec.dtype is DType.BOOL else spec.below
    return np.asarray(generator.integers(0, below, shape), spec.dtype.numpy)


def _needed(guesses: list[_Guess], why: str, side: int) -> ShapesNeeded:
    open_ = [guess for guess in guesses if guess.axes is None or min(guess.axes, default=0) < 0]
    example = ",".join(
        f"{spec.name}:{shape_text(spec.shape) if guess.axes is not None else '1x3x224x224'}"
        for spec, guess in zip(_resolved(guesses, side), guesses, strict=True)
    )
    return ShapesNeeded(
        f"The uploaded file does not say the shape of {', '.join(map(_described, open_))}: {why}.",
        hint=f"Give the shapes that the network is to run at, as in: -F input_shapes={example}",
    )


def _described(guess: _Guess) -> str:
    if guess.axes is None:
        return f"the input {guess.name!r}"
    words = {SIDE: "?", LENGTH: "?"}
    axes = "x".join(words.get(length, str(length)) for length in guess.axes)
    return f"the input {guess.name!r} ({guess.dtype.value} {axes})"
