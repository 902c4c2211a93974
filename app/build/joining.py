"""Whether the rows of an engine may be joined: the answer to each must not depend on its neighbours."""

from __future__ import annotations

import numpy as np

from app.backends.base import Context
from app.build.compare import Comparison, is_within
from app.build.graph import Source
from app.build.reference import Reference
from app.build.shapes import RunShapes
from app.domain.builds import Tolerance
from app.domain.errors import AccuracyLost, ExecutionFailed, SourceFailed
from app.domain.tensors import Tensors

ROWS = (1, 2, 3, 5)  # batch lengths that are compared and joined


def dependence(context: Context, reference: Reference, source: Source, shapes: RunShapes, tolerance: Tolerance) -> str:
    """Why rows may not be joined; "" when runs of several answer as runs of each."""
    unit = max(1, shapes.rows_min)
    joinable = [parts for parts in ROWS[1:] if shapes.admits(parts * unit)]
    for parts in joinable:
        try:
            inputs, _ = reference.sample(shapes.with_rows(parts * unit), seed=2 * parts)
            is_same = _is_same(
                context, inputs, [_piece(inputs, shapes, n * unit, unit) for n in range(parts)], source, tolerance
            )
        except (AccuracyLost, ExecutionFailed, SourceFailed, ValueError):  # axis 0 of the answer is not the rows'
            is_same = False
        if not is_same:
            return f"the answers to {parts * unit} rows differ from those to the rows alone"
    return "" if joinable else "the shapes asked for leave no room"


def _is_same(context: Context, inputs: Tensors, pieces: list[Tensors], source: Source, tolerance: Tolerance) -> bool:
    joined, alone = context.run(inputs), [context.run(piece) for piece in pieces]
    comparison = Comparison(source.outputs, classifier=False)
    comparison.add({name: np.concatenate([one[name] for one in alone]) for name in joined}, joined, len(pieces))
    return all(is_within(output, tolerance) for output in comparison.accuracy("").outputs)


def _piece(inputs: Tensors, shapes: RunShapes, start: int, rows: int) -> Tensors:
    """These rows of each input, along every axis that follows the batch length."""
    piece = {}
    for name, tensor in inputs.items():
        for axis in shapes.batch_axes[name]:
            tensor = tensor.take(range(start, start + rows), axis)
        piece[name] = np.ascontiguousarray(tensor)
    return piece
