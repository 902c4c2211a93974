"""The uploaded model as it is, run on random inputs that it accepts: what an engine is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from app.backends import registry
from app.backends.base import Context, LoadedEngine
from app.build.graph import Source
from app.build.shapes import RunShapes, Shapes, candidates, open_axes, run_shapes
from app.domain.errors import EngineUnloadable, ExecutionFailed, ShapesNeeded, SourceFailed
from app.domain.tensors import DType, Shape, ShapeRange, Tensor, Tensors, TensorSpec, described, shape_text


@dataclass(frozen=True)
class _Draw:
    integers_below: int  # 1: all ones, 0: all zeros
    unit_floats: bool  # in 0..1 whatever the seed


# Each is tamer than the one before: integers may be indices or axes, floats ratios; the graph does not tell.
_WIDEST = _Draw(10, False)
_DRAWS = (_WIDEST, _Draw(4, False), _Draw(2, True), _Draw(1, True), _Draw(0, True))
_SEED = 20_261_122


class Runner(Protocol):
    """What runs the source model: ONNX Runtime, its own framework, or either behind an adapter."""

    def run(self, inputs: Tensors) -> Tensors:
        """Its answer, every output by name in the model's order.

        Raises:
            ExecutionFailed: it refused the inputs or failed.
        """
        ...

    def close(self) -> None: ...


class Reference:
    """The source model, on its own runtime: with ONNX Runtime, every optimisation is off."""

    def __init__(self, runner: Runner, inputs: tuple[TensorSpec, ...], runtime: str) -> None:
        self._runner = runner
        self._inputs = inputs
        self.runtime = runtime  # with its version

    def adapted(self, adapt: Callable[[Runner], Runner], inputs: tuple[TensorSpec, ...]) -> Reference:
        """The same model asked in another way: it then takes these inputs. Close one of the two."""
        return Reference(adapt(self._runner), inputs, self.runtime)

    def sample(self, shapes: Shapes, seed: int) -> tuple[Tensors, Tensors]:
        """Random inputs of these shapes that the model accepts, and its answer.

        Even seeds draw floats from a standard normal distribution, odd ones from 0..1 as in an image.

        Raises:
            SourceFailed: it accepts none; its last words are in the message.
        """
        failure: ExecutionFailed | None = None
        for draw in _DRAWS:
            inputs = _random_inputs(self._inputs, shapes, seed, draw)
            try:
                return inputs, self._runner.run(inputs)
            except ExecutionFailed as error:
                failure = error
        sizes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in shapes.items())
        raise SourceFailed(
            f"The uploaded model fails on random inputs ({sizes}): {failure.detail if failure else ''}",
            hint="Run the model with ONNX Runtime where it was exported. Give opt_shapes if it needs other lengths; if"
            " an input is an axis or a shape, make it a constant of the network.",
        ) from failure

    def run(self, inputs: Tensors) -> Tensors:
        return self._runner.run(inputs)

    def close(self) -> None:
        self._runner.close()


class RowByRow(Runner):
    """Asks a model of a fixed batch for any number of rows, as many at a time as it takes."""

    def __init__(self, runner: Runner, rows: int) -> None:
        self._runner = runner
        self._rows = rows

    def run(self, inputs: Tensors) -> Tensors:
        count = len(next(iter(inputs.values())))
        answers = [self._runner.run(self._piece(inputs, start)) for start in range(0, count, self._rows)]
        return {name: np.concatenate([answer[name] for answer in answers])[:count] for name in answers[0]}

    def _piece(self, inputs: Tensors, start: int) -> Tensors:
        """Some rows, the last one repeated where there are too few."""
        count = len(next(iter(inputs.values())))
        indices = np.minimum(np.arange(start, start + self._rows), count - 1)
        return {name: np.ascontiguousarray(tensor[indices]) for name, tensor in inputs.items()}

    def close(self) -> None:
        self._runner.close()


class _EngineRunner(Runner):
    def __init__(self, engine: LoadedEngine) -> None:
        self._engine = engine
        self._context: Context = engine.open_context()

    def run(self, inputs: Tensors) -> Tensors:
        return self._context.run(inputs)

    def close(self) -> None:
        self._context.close()
        self._engine.close()


def opened(paths: tuple[Path, ...], inputs: tuple[TensorSpec, ...]) -> Reference:
    """The first of the files that ONNX Runtime loads, the upload itself before copies made readable.

    Raises:
        SourceFailed: it loads none of them.
    """
    runtime = registry.backend("onnxruntime")
    failure: EngineUnloadable | None = None
    for path in paths:
        try:
            engine = runtime.load(path)
        except EngineUnloadable as error:
            failure = error
        else:
            return Reference(_EngineRunner(engine), inputs, f"{runtime.name} {runtime.facts().backend_version}")
    raise SourceFailed(
        f"The uploaded model cannot be run: {failure.detail if failure else ''}",
        hint="Export the network again; it has to load in ONNX Runtime.",
    ) from failure


def probed_shapes(
    source: Source, ranges: Mapping[str, ShapeRange], reference: Reference
) -> tuple[RunShapes, Mapping[str, Tensor]]:
    """Shapes that the model really accepts, found by running it, and its answer at them.

    Raises:
        SourceFailed: the request or the model leaves nothing open, and it fails.
        ShapesNeeded: some axes are open, and it accepts none of the lengths that were tried.
    """
    failure: SourceFailed | None = None
    for shapes in candidates(source, ranges):
        try:
            _, outputs = reference.sample(shapes, seed=1)
        except SourceFailed as error:
            failure = error
        else:
            return run_shapes(source, ranges, shapes), outputs
    axes = open_axes(source, ranges)
    if not axes and failure is not None:
        raise failure
    example = ",".join(f"{name}:{shape_text(shape)}" for name, shape in next(candidates(source, ranges)).items())
    raise ShapesNeeded(
        f"The model's inputs are {described(source.inputs)}, and it fails with every length tried for"
        f" {', '.join(f'axis {axis} of {spec.name!r}' for spec, axis in axes)}: {failure.detail if failure else ''}",
        hint=f"Give the shapes that it is to run at, as in: -F opt_shapes={example}",
    ) from failure


def _random_inputs(specs: tuple[TensorSpec, ...], shapes: Shapes, seed: int, draw: _Draw) -> Tensors:
    """Inputs of these shapes: the same for the same seed and draw."""
    generator = np.random.default_rng((_SEED, seed))
    return {spec.name: _random(spec.dtype, shapes[spec.name], generator, seed, draw) for spec in specs}


def _random(dtype: DType, shape: Shape, generator: np.random.Generator, seed: int, draw: _Draw) -> Tensor:
    if dtype.is_float:
        unit = seed % 2 or draw.unit_floats
        return np.asarray(generator.random(shape) if unit else generator.standard_normal(shape), dtype.numpy)
    if draw.integers_below < 2:
        return np.full(shape, draw.integers_below, dtype.numpy)
    limit = {DType.BOOL: 2, DType.UINT8: 256 if draw is _WIDEST else draw.integers_below}  # bytes are pixels, mostly
    # A lone integer is a step, a size or a count more often than an index; 0 for a step ends some kernels by signal.
    low = 0 if shape or dtype is DType.BOOL else 1
    return np.asarray(generator.integers(low, limit.get(dtype, draw.integers_below), shape), dtype.numpy)
