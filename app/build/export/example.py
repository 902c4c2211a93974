"""An opened network with an example that it takes, and the plan of its export. Imports torch."""

from __future__ import annotations

from pathlib import Path

from app.build.export.clues import Clue, clues
from app.build.export.messages import ExportRequest
from app.build.export.networks import Program, Script, opened
from app.build.export.plan import Plan, planned, planned_by_file
from app.build.export.shapes import found_inputs


def opened_with_plan(path: Path, request: ExportRequest) -> tuple[Script | Program, Plan]:
    """Open the file and decide at which shapes it is exported.

    Raises:
        BuildFailed: it cannot be opened, or its shapes cannot be told.
    """
    network = opened(path, request.format)
    known = dict(zip(network.inputs, network.known or (), strict=False))
    examples = {name: (value.dtype, value.shape) for name, value in known.items()}
    if isinstance(network, Program):
        inputs = found_inputs(network, request.shapes, examples, {})
        return network, planned_by_file(network, inputs, {name: value.free for name, value in known.items()})
    inputs = found_inputs(network, request.shapes, examples, _clues(network))
    return network, planned(network, inputs, request.shapes.by_input(network.inputs), request.dynamic_batch)


def _clues(network: Script) -> dict[str, Clue]:
    names = [argument.name for argument in network.module.forward.schema.arguments[1:]]
    found = zip(names, clues(network.graph, network.module), strict=True)
    return {name: clue for name, clue in found if clue is not None and name in network.inputs}
