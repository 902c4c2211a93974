"""Constants of a graph computed once, before anything looks for them: what a network knew at its export."""

from __future__ import annotations

from pathlib import Path

import onnx

from app.backends.onnxruntime import OnnxRuntime
from app.backends.onnxruntime_models import nodes_of, split_tensors
from app.domain.errors import CompileFailed


def folded_constants(model: Path, out: Path) -> onnx.ModelProto:
    """The graph with constants as weights and batch normalisations taken into convolutions; unchanged where the
    runtime cannot, or would use operators of its own.

    Args:
        out: a file that may be written.
    """
    before = onnx.load_model(str(model), load_external_data=False)
    if split_tensors(before):  # the runtime would have to write one file of all weights
        return before
    try:
        OnnxRuntime().fold(model, out)
    except CompileFailed:
        return before
    after = onnx.load_model(str(out))
    ours = {entry.domain or "ai.onnx" for entry in before.opset_import}
    used = {node.domain or "ai.onnx" for node in nodes_of(after)}
    if not used <= ours:
        return before
    del after.opset_import[:]
    after.opset_import.extend(before.opset_import)
    after.ir_version = before.ir_version
    return after
