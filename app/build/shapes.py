"""Which shapes an engine is built for, and at which it is run to prove it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from app.build.graph import Source
from app.domain.builds import BuildOptions
from app.domain.errors import ShapesContradict
from app.domain.tensors import ANY, Shape, ShapeRange, TensorSpec, described, shape_text

Shapes = Mapping[str, Shape]  # by input

_SIDES = (224, 64, 32, 256, 640)  # tried for height and width, in pixels
_LENGTHS = (1, 8, 16, 32, 128)  # tried for every other axis


def requested_ranges(inputs: tuple[TensorSpec, ...], options: BuildOptions) -> dict[str, ShapeRange]:
    """The range of each dynamic input that the request limits.

    `input_shapes` is the shape to run at. What is left out follows trtexec where it has a rule: opt is the input
    shape, else max, else min; max is opt; min is opt, but where a max is given a dynamic axis 0 starts at 1. So
    `input_shapes` or `opt_shapes` alone fix the input at that shape, and `max_shapes` alone allows every batch up
    to it.

    Raises:
        ShapesContradict: an unknown input, another rank, a fixed axis asked to be different, or min > opt > max.
    """
    kinds = ("input_shapes", "min_shapes", "opt_shapes", "max_shapes")
    given = {kind: _named(getattr(options, kind), kind, inputs) for kind in kinds}
    ranges = {}
    for spec in inputs:
        wanted = {kind: shapes[spec.name] for kind, shapes in given.items() if spec.name in shapes}
        for kind, shape in wanted.items():
            _refuse_misfit(spec, kind, shape)
        if wanted and ANY in spec.shape:
            ranges[spec.name] = _filled(spec, wanted)
    return ranges


@dataclass(frozen=True)
class RunShapes:
    """The shapes of verification runs: a base, and the same with another number of rows."""

    inputs: tuple[TensorSpec, ...]
    base: Shapes
    batch_axes: Mapping[str, tuple[int, ...]]  # by input: the axes whose length is the number of rows
    rows_min: int  # that the requested ranges admit
    rows_max: int | None  # None: no limit

    @property
    def rows(self) -> int:
        """Rows of a base run: the length of axis 0 that all inputs share, else 1."""
        lengths = {shape[0] if shape else None for shape in self.base.values()}
        return (lengths.pop() if len(lengths) == 1 else None) or 1

    @property
    def is_batched(self) -> bool:
        """Whether axis 0 of every input can have any length."""
        return bool(self.inputs) and all(spec.shape and spec.shape[0] == ANY for spec in self.inputs)

    def admits(self, rows: int) -> bool:
        return self.rows_min <= rows and (self.rows_max is None or rows <= self.rows_max)

    def takes_rows(self, rows: int) -> bool:
        """Whether so many rows can be run, axis 0 of every input being their number."""
        return self.is_batched and self.admits(rows)

    def with_rows(self, rows: int) -> Shapes:
        return {
            name: tuple(rows if axis in self.batch_axes[name] else length for axis, length in enumerate(shape))
            for name, shape in self.base.items()
        }


def run_shapes(source: Source, ranges: Mapping[str, ShapeRange], base: Shapes) -> RunShapes:
    """How the model can be run around a base that it accepts."""
    heads = {source.symbols[spec.name][0] for spec in source.inputs if spec.shape and spec.shape[0] == ANY} - {""}
    axes = {
        spec.name: tuple(
            axis
            for axis, length in enumerate(spec.shape)
            if length == ANY and (axis == 0 or source.symbols[spec.name][axis] in heads)
        )
        for spec in source.inputs
    }
    limits = [
        (ranges[name].min[axis], ranges[name].max[axis]) for name in ranges for axis in axes[name]
    ]  # of every axis that follows the number of rows
    return RunShapes(
        inputs=source.inputs,
        base=base,
        batch_axes=axes,
        rows_min=max((low for low, _ in limits), default=1),
        rows_max=min((high for _, high in limits), default=None),
    )


def candidates(source: Source, ranges: Mapping[str, ShapeRange]) -> Iterator[Shapes]:
    """Concrete shapes to try, the likeliest first; one when nothing is left open.

    Axes in a range have its opt, a dynamic axis 0 has one row, and lengths of one name are equal. What is then
    still open is tried: heights and widths with the sizes that networks are made for, the rest from 1 to 128.
    """
    known = _known_lengths(source, ranges)
    sides = any(_is_side(spec, axis) for spec, axis in open_axes(source, ranges))
    others = any(not _is_side(spec, axis) for spec, axis in open_axes(source, ranges))
    for length, side in product(_LENGTHS if others else (1,), _SIDES if sides else (1,)):
        yield {
            spec.name: _concrete(spec, source.symbols[spec.name], ranges, known, side, length) for spec in source.inputs
        }


def open_axes(source: Source, ranges: Mapping[str, ShapeRange]) -> list[tuple[TensorSpec, int]]:
    """Dynamic axes, but for axis 0, that neither the request nor an axis of the same name fixes."""
    known = _known_lengths(source, ranges)
    return [
        (spec, axis)
        for spec in source.inputs
        for axis, length in enumerate(spec.shape)
        if axis and length == ANY and spec.name not in ranges and source.symbols[spec.name][axis] not in known
    ]


def _named(shapes: Mapping[str, Shape], kind: str, inputs: tuple[TensorSpec, ...]) -> dict[str, Shape]:
    """The shapes by input name: "" stands for the only input."""
    named = {}
    for key, shape in shapes.items():
        name = inputs[0].name if key == "" and len(inputs) == 1 else key
        if name in named or all(spec.name != name for spec in inputs):
            raise ShapesContradict(
                f"{kind} names {key[:80] or 'no input'!r}; the model's inputs are: {described(inputs) or 'none'}.",
                hint="Write name:1x3x224x224, each input once; the name may be left out when there is one input.",
            )
        named[name] = shape
    return named


def _refuse_misfit(spec: TensorSpec, kind: str, shape: Shape) -> None:
    if min(shape, default=0) < 0 or not spec.fits(shape):
        raise ShapesContradict(
            f"{kind} asks {shape_text(shape)} of the input {spec.name!r}, which is {shape_text(spec.shape)}"
            " (-1 = any length).",
            hint="Ask for the same number of axes, keep the fixed lengths, and give a length for every -1. A fixed"
            " batch can be made dynamic: -F dynamic_batch=true.",
        )


def _filled(spec: TensorSpec, wanted: Mapping[str, Shape]) -> ShapeRange:
    exact, low, best, high = (wanted.get(f"{kind}_shapes") for kind in ("input", "min", "opt", "max"))
    best = best or exact
    if exact is not None and best != exact:
        raise ShapesContradict(
            f"input_shapes asks {shape_text(exact)} of the input {spec.name!r}, opt_shapes {shape_text(best or ())}.",
            hint="Give one of the two.",
        )
    best = best or high or low or ()
    if low is None and high is not None and spec.shape[0] == ANY:
        low = (min(1, best[0]), *best[1:])
    filled = ShapeRange(low or best, best, high or best)
    if not filled.holds(best):
        raise ShapesContradict(
            f"The input {spec.name!r} is asked for min {shape_text(filled.min)}, opt {shape_text(best)}"
            f" and max {shape_text(filled.max)}.",
            hint="On every axis, min must be at most opt, and opt at most max.",
        )
    return filled


def _known_lengths(source: Source, ranges: Mapping[str, ShapeRange]) -> dict[str, int]:
    """Lengths by axis name that the request or the one row of axis 0 fixes."""
    known = {}
    for spec in source.inputs:
        for axis, (symbol, length) in enumerate(zip(source.symbols[spec.name], spec.shape, strict=True)):
            if symbol and length == ANY and spec.name in ranges:
                known[symbol] = ranges[spec.name].opt[axis]
            elif symbol and length == ANY and axis == 0:
                known.setdefault(symbol, 1)
    return known


def _concrete(
    spec: TensorSpec,
    symbols: tuple[str, ...],
    ranges: Mapping[str, ShapeRange],
    known: Mapping[str, int],
    side: int,
    length: int,
) -> Shape:
    if spec.name in ranges:
        return ranges[spec.name].opt
    tried = [1 if axis == 0 else side if _is_side(spec, axis) else length for axis in range(len(spec.shape))]
    return tuple(
        fixed if fixed != ANY else known.get(symbol, fallback)
        for fixed, symbol, fallback in zip(spec.shape, symbols, tried, strict=True)
    )


def _is_side(spec: TensorSpec, axis: int) -> bool:
    """Whether the axis is a height or width: of four axes the last two, or the middle two when channels come last."""
    if len(spec.shape) != 4:
        return False
    return axis in ((1, 2) if spec.shape[3] in (1, 3, 4) else (2, 3))
