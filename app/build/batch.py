"""A batch that the export fixed → any number of rows: relabelled, its Reshapes rewritten, and then proven.

Relabelling alone is wrong for most networks: a constant shape somewhere inside still says how many rows there are.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from app.backends import registry
from app.build.compare import Comparison, problems
from app.build.graph import Source
from app.build.reference import Reference
from app.build.shapes import Shapes
from app.build.tolerances import joined_tolerance
from app.domain.builds import Precision
from app.domain.errors import AccuracyLost, DynamicBatchImpossible, EngineUnloadable, ExecutionFailed
from app.domain.tensors import described

_ROWS = (1, 2, 3, 5)
_NAME = "batch"


def fixed_rows(source: Source) -> int:
    """The batch length that all inputs share; 0 when it is dynamic already.

    Raises:
        DynamicBatchImpossible: the inputs have no such length.
    """
    lengths = {spec.shape[0] if spec.shape else None for spec in source.inputs}
    if lengths == {-1}:
        return 0
    if len(lengths) != 1 or not (rows := lengths.pop()) or any(not spec.shape for spec in source.outputs):
        raise DynamicBatchImpossible(
            f"The inputs are {described(source.inputs) or 'none'}, the outputs {described(source.outputs)}: they have"
            " no batch axis in common.",
            hint="Leave dynamic_batch out, or export the network with dynamic_axes.",
        )
    return rows


def make_dynamic(model: onnx.ModelProto, rows: int) -> int:
    """Relabel axis 0 of every input and output, and have Reshapes follow it.

    Args:
        rows: the fixed batch length.

    Returns:
        How many Reshapes and Expands were rewritten.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    moving = {value.name for value in model.graph.input} - set(constants)
    rewritten = 0
    for node in model.graph.node:
        if not moving.intersection(node.input):
            continue
        moving.update(node.output)
        if node.op_type in ("Reshape", "Expand") and node.input[0] in moving and node.input[1] in constants:
            rewritten += _rewrite(model.graph, node, constants[node.input[1]], shapes.get(node.output[0]), rows)
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and dims and dims[0].dim_value == rows:
            dims[0].dim_param = _NAME
    del model.graph.value_info[:]
    return rewritten


def prove(model: Path, source: Source, reference: Reference, base: Shapes) -> None:
    """Run the dynamic model beside the fixed one.

    Args:
        source: of the dynamic model.
        reference: the model as uploaded, asked row by row.

    Raises:
        DynamicBatchImpossible: it fails at another batch length, or its answers differ.
    """
    try:
        with closing(registry.backend("onnxruntime").load(model)) as engine, closing(engine.open_context()) as context:
            for rows in _ROWS:
                comparison = Comparison(source.outputs, classifier=False)
                for seed in range(2):
                    shapes = {name: (rows, *shape[1:]) for name, shape in base.items()}
                    inputs, expected = reference.sample(shapes, seed)
                    comparison.add(expected, context.run(inputs), rows)
                found = problems(comparison.accuracy(""), joined_tolerance(source, Precision.FP32))
                if found:
                    raise _impossible(f"with {rows} rows the answers differ from those to the rows alone. {found[0]}")
    except (AccuracyLost, EngineUnloadable, ExecutionFailed, ValueError) as error:
        raise _impossible(f"made dynamic, it does not run with other batch lengths. {error}") from error


def _impossible(reason: str) -> DynamicBatchImpossible:
    return DynamicBatchImpossible(
        f"The model's batch cannot be made dynamic: {reason}",
        hint="Export the network with dynamic_axes (torch.onnx.export) or dynamic_shapes, or leave dynamic_batch out.",
    )


def _rewrite(
    graph: onnx.GraphProto, node: onnx.NodeProto, constant: onnx.TensorProto, shape: list[int] | None, rows: int
) -> int:
    """Give the node a shape of its own that leaves the batch open. 1 when it was changed."""
    asked = numpy_helper.to_array(constant).tolist()
    if not asked:
        return 0
    if node.op_type == "Expand":
        wanted = [1, *asked[1:]] if asked[0] == rows else asked  # 1: as long as the input is
    elif shape and all(length > 0 for length in shape):
        wanted = [-1, *shape[1:]]
    elif asked[0] == rows:
        wanted = [0 if -1 in asked else -1, *asked[1:]]  # 0: as long as the input is
    else:
        wanted = asked
    if wanted == asked:
        return 0
    name = f"{node.output[0]}/shape"
    graph.initializer.append(numpy_helper.from_array(np.array(wanted, np.int64), name))
    node.input[1] = name
    return 1


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
