"""The confined child that tells about an uploaded model: `python -m app.build.inspect`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from app.backends import registry
from app.build.channel import Message
from app.build.confined_child import Confined, serve
from app.build.export import pt2_check
from app.build.export.messages import INSTALL_TORCH
from app.build.torch_files import program_facts, torchscript_facts
from app.domain.builds import ModelFormat
from app.domain.errors import BackendMissing, BuildFailed, BuildKilled, ServiceError, ShapesNeeded
from app.domain.model_facts import ModelFacts
from app.domain.tensors import ANY, TensorSpec
from app.storage.codec import encode

if TYPE_CHECKING:  # a PyTorch file is looked into without it
    import onnx


def main() -> int:
    return serve("app.build.inspect", _imports, _work)


def describe(path: Path, format: ModelFormat) -> ModelFacts:
    """What the file tells about its network.

    Raises:
        BuildFailed: the file is damaged, or no build of it could succeed.
    """
    if not format.is_torch:
        return _onnx_facts(path, format)
    facts = torchscript_facts(path) if format is ModelFormat.TORCHSCRIPT else program_facts(path)
    if format is ModelFormat.PT2:
        pt2_check.check(path)
    if not _has_torch():
        return replace(facts, hint=f"PyTorch, which a build needs, is not installed on this device. {INSTALL_TORCH}")
    return _with_inputs(path, facts) if facts.needs_shapes else facts


def _imports(request: Message) -> None:
    if not ModelFormat(request["format"]).is_torch:  # torch can be imported later, if it is needed at all
        import app.build.graph  # noqa: F401

        for name in registry.NAMES:
            _backend_if_available(name)


def _work(confined: Confined) -> None:
    try:
        facts = describe(confined.source, ModelFormat(confined.request["format"]))
    except MemoryError as error:
        raise BuildKilled("Reading the model takes more memory than it may.", hint="Upload a smaller model.") from error
    confined.channel.send({"answer": encode(facts)})


def _has_torch() -> bool:
    return find_spec("torch") is not None


def _with_inputs(path: Path, facts: ModelFacts) -> ModelFacts:
    """The inputs of a scripted module, as a build would find them."""
    from app.build.export.example import opened_with_plan
    from app.build.export.messages import AskedShapes, ExportRequest

    request = ExportRequest(ModelFormat.TORCHSCRIPT, 17, 17, AskedShapes(), dynamic_batch=True)
    try:
        _, plan = opened_with_plan(path, request)
    except ShapesNeeded as error:
        return replace(facts, hint=error.hint)
    inputs = tuple(
        TensorSpec(spec.name, spec.dtype, (ANY if spec.name in plan.batched else spec.shape[0], *spec.shape[1:]))
        for spec in plan.inputs
    )
    return replace(facts, inputs=inputs, needs_shapes=())


def _onnx_facts(path: Path, format: ModelFormat) -> ModelFacts:
    from app.backends.onnxruntime_models import nodes_of
    from app.build import graph
    from app.build.unpack import network_in

    model = graph.parsed(path) if format is ModelFormat.ONNX else network_in(path)
    source = graph.described_source(model)
    is_archive = format is ModelFormat.ONNX_ARCHIVE
    return ModelFacts(
        size_bytes=path.stat().st_size,
        inputs=source.inputs,
        outputs=source.outputs,
        opset=source.opset,
        parameters=source.parameters,
        operators=Counter(_operator(node) for node in nodes_of(model)),
        refused_by=_refusals(_in_memory(model) if is_archive else path),
    )


def _in_memory(model: onnx.ModelProto) -> Path:
    """A file of the graph for backends, which look for operators only: this process cannot make one on a disk."""
    file = os.memfd_create("graph")
    with open(file, "wb", closefd=False) as memory:
        memory.write(model.SerializeToString())
    return Path(f"/proc/self/fd/{file}")


def _operator(node: object) -> str:
    domain, name = getattr(node, "domain", ""), getattr(node, "op_type", "")
    return f"{domain}::{name}" if domain not in ("", "ai.onnx") else str(name)


def _refusals(path: Path) -> dict[str, str]:
    """By backend of this device: what it says against the model."""
    refusals = {}
    for name in registry.available():
        try:
            registry.backend(name).check(path)
        except BuildFailed as error:
            refusals[name] = error.detail
        except ServiceError:
            continue  # the backend itself cannot be asked here
    return refusals


def _backend_if_available(name: str) -> None:
    try:
        registry.backend(name)
    except BackendMissing:
        return


if __name__ == "__main__":
    sys.exit(main())
