"""Which axes an export leaves open, and at which shapes it is put to the proof. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.build.export.shapes import Input, Runnable, Shapes, random_inputs
from app.domain.errors import BuildFailed, ShapesContradict
from app.domain.tensors import ShapeRange, Tensors

BATCH = "batch"  # name of the axis that holds the rows
_ROWS = (1, 3)  # besides those of the example
_EXAMPLE_ROWS = 2  # torch.export takes 1 for a constant

Free = Mapping[str, Mapping[int, tuple[int, int]]]  # by input and axis: the least and the largest length


@dataclass(frozen=True)
class Plan:
    inputs: tuple[Input, ...]
    batched: tuple[str, ...]  # inputs whose axis 0 is to have any length; empty: the rows are fixed
    open_axes: Mapping[str, tuple[int, ...]]  # by input: other axes that are to have any length
    trials: tuple[Shapes, ...]  # the example's shapes first

    @property
    def example(self) -> Tensors:
        return random_inputs(self.inputs, self.trials[0], seed=0)

    @property
    def is_dynamic(self) -> bool:
        return bool(self.batched)

    def axis_names(self) -> dict[str, dict[int, str]]:
        """By input: the names of the axes that are to have any length."""
        named = {spec.name: {axis: f"{spec.name}_{axis}" for axis in self.open_axes[spec.name]} for spec in self.inputs}
        for name in self.batched:
            named[name][0] = BATCH
        return {name: axes for name, axes in named.items() if axes}

    def rows(self, shapes: Shapes) -> int | None:
        """Rows of a trial; None when the batch is fixed."""
        return shapes[self.batched[0]][0] if self.batched else None


def planned(
    network: Runnable, inputs: tuple[Input, ...], ranges: Mapping[str, ShapeRange], dynamic_batch: bool
) -> Plan:
    """What can be left open of a network that any shapes may be given to: found by running it.

    Raises:
        ShapesContradict: the network fails at the ends of a range that was asked for.
    """
    base = {spec.name: spec.shape for spec in inputs}
    varying = {name: _varying(ranges.get(name)) for name in base}
    batched = _sharing_rows(base) if dynamic_batch else ()
    if not all(_takes(network, inputs, with_rows(base, batched, rows)) for rows in (*_ROWS, _EXAMPLE_ROWS)):
        batched = ()
    ends = [_end(network, inputs, base, ranges, kind) for kind in ("min", "max")] if any(varying.values()) else []
    open_axes = {name: tuple(a for a in axes if a or name not in batched) for name, axes in varying.items()}
    return Plan(inputs, batched, open_axes, _trials(base, batched, ends))


def planned_by_file(network: Runnable, inputs: tuple[Input, ...], free: Free) -> Plan:
    """What a file declares open, which an export can neither widen nor narrow."""
    base = {spec.name: spec.shape for spec in inputs}
    batched = tuple(name for name in base if 0 in free[name])
    open_axes = {name: tuple(axis for axis in axes if axis) for name, axes in free.items()}
    trials = [
        shapes for shapes in _trials(base, batched, []) if _is_within(shapes, free) and _takes(network, inputs, shapes)
    ]
    return Plan(inputs, batched, open_axes, tuple(trials) or (base,))


def with_rows(shapes: Shapes, batched: tuple[str, ...], rows: int) -> Shapes:
    return {name: (rows, *shape[1:]) if name in batched else shape for name, shape in shapes.items()}


def _trials(base: Shapes, batched: tuple[str, ...], ends: list[Shapes]) -> tuple[Shapes, ...]:
    """The example, the base, other rows, and the ends of what was asked for; each once."""
    rows = max((shape[0] for name, shape in base.items() if name in batched), default=1)
    example = with_rows(base, batched, max(_EXAMPLE_ROWS, rows)) if batched else base
    others = [with_rows(base, batched, rows) for rows in _ROWS] if batched else []
    trials: list[Shapes] = []
    for shapes in (example, base, *others, *ends):
        if shapes not in trials:
            trials.append(shapes)
    return tuple(trials)


def _sharing_rows(shapes: Shapes) -> tuple[str, ...]:
    """Inputs whose axis 0 is as long as that of the first that has one."""
    heads = {name: shape[0] for name, shape in shapes.items() if shape}
    return tuple(name for name, rows in heads.items() if rows == next(iter(heads.values())))


def _varying(asked: ShapeRange | None) -> tuple[int, ...]:
    if asked is None:
        return ()
    return tuple(axis for axis, (low, high) in enumerate(zip(asked.min, asked.max, strict=True)) if low != high)


def _end(
    network: Runnable, inputs: tuple[Input, ...], base: Shapes, ranges: Mapping[str, ShapeRange], kind: str
) -> Shapes:
    shapes = {**base, **{name: getattr(asked, kind) for name, asked in ranges.items()}}
    try:
        network.run(random_inputs(inputs, shapes, seed=0))
    except BuildFailed as error:
        raise ShapesContradict(
            f"The network itself fails at the {kind}imum of the shapes asked for. {error.detail}",
            hint=f"Give {kind}_shapes that the network accepts.",
        ) from error
    return shapes


def _is_within(shapes: Shapes, free: Free) -> bool:
    return all(low <= shapes[name][axis] <= high for name, axes in free.items() for axis, (low, high) in axes.items())


def _takes(network: Runnable, inputs: tuple[Input, ...], shapes: Shapes) -> bool:
    try:
        network.run(random_inputs(inputs, shapes, seed=0))
    except BuildFailed:
        return False
    return True
