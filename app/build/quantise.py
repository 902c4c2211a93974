"""A graph in float32 and calibration samples → the same graph with Q/DQ nodes where a runtime wants them."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from app.backends.base import Progress, Samples
from app.backends.onnxruntime_models import opset_of
from app.build import quantise_onnxruntime, quantise_tensorrt
from app.build.constants import folded_constants
from app.build.quantise_ranges import Ranges, measured_ranges
from app.build.shapes import RunShapes
from app.domain.builds import Placement, Ranging
from app.domain.errors import QuantiseFailed

_OPSET_MIN = 13  # from here on a Q/DQ node has a scale per channel
_RANGES_REVISION = 1  # raise it when ranges are measured differently: those kept are then not used


@dataclass(frozen=True)
class Quantiser:
    """How the graphs of one build are quantised."""

    samples: Samples
    shapes: RunShapes
    ranging: Ranging | None  # None: the smallest and largest values seen
    cache: Path  # folder of ranges kept for the next build
    progress: Progress

    def quantise(self, model: Path, out: Path, placement: Placement) -> Path:
        """Write the quantised graph to `out`.

        Returns:
            The float graph that it was made from, beside it; both have the same tensors by the same names.

        Raises:
            QuantiseFailed: there is nothing to quantise, or a step failed.
        """
        plain = out.with_suffix(".float.onnx")
        graph = _prepared(model, plain)
        floats = _float_tensors(graph)
        placing = quantise_tensorrt if placement is Placement.TENSORRT else quantise_onnxruntime
        tensors = placing.activations(graph, floats)
        if not set(quantise_tensorrt.WEIGHTED) & {node.op_type for node in graph.graph.node} or not tensors:
            raise QuantiseFailed(
                "The model has no layer that runs in INT8: no Conv, ConvTranspose, Gemm or MatMul on float32 tensors.",
                hint="Build with precision=fp16 or fp32.",
            )
        ranges = self._ranges(graph, model, tensors, out.with_suffix(".ranges.onnx"))
        try:
            _save(_with_nodes(graph, ranges, placement), out)
        except (QuantiseFailed, OSError):
            raise
        except Exception as error:  # the quantiser of ONNX Runtime raises whatever goes wrong in it
            raise QuantiseFailed(
                f"ONNX Runtime's quantiser refused the model: {type(error).__name__}: {str(error)[:300]}",
                hint="Build with simplify=true, or with precision=fp16 or fp32.",
            ) from error
        return plain

    def _ranges(self, graph: onnx.ModelProto, model: Path, tensors: list[str], scratch: Path) -> Ranges:
        ranging = self.ranging or Ranging.MINMAX
        kept = self.cache / f"ranges-{self._key(model, tensors, ranging)}.json"
        with suppress(FileNotFoundError, ValueError):
            ranges: Ranges = {name: (low, high) for name, (low, high) in json.loads(kept.read_text()).items()}
            os.utime(kept)  # the worker removes what was not used for long
            self.progress.step(
                f"calibration skipped: the ranges of {len(ranges)} tensors are kept from an earlier build"
            )
            return ranges
        ranges = measured_ranges(graph, tensors, self.samples, self.shapes, ranging, scratch)
        self.progress.step(f"calibrated on {self.samples.count} samples: {ranging.value} of {len(ranges)} tensors")
        self.cache.mkdir(parents=True, exist_ok=True)
        draft = kept.with_suffix(f".{os.getpid()}.draft")
        draft.write_text(json.dumps(ranges))
        draft.replace(kept)
        return ranges

    def _key(self, model: Path, tensors: list[str], ranging: Ranging) -> str:
        graph = hashlib.sha256(model.read_bytes()).hexdigest()
        text = json.dumps([_RANGES_REVISION, graph, self.samples.key, ranging.value, tensors])
        return hashlib.sha256(text.encode()).hexdigest()


def _with_nodes(graph: onnx.ModelProto, ranges: Ranges, placement: Placement) -> onnx.ModelProto:
    if placement is Placement.ONNXRUNTIME:
        return quantise_onnxruntime.placed(graph, ranges)
    quantise_tensorrt.place(graph, ranges)
    return graph


def _prepared(model: Path, out: Path) -> onnx.ModelProto:
    """The graph as both placements need it, saved to `out`: constants folded, every node named, shapes inferred."""
    graph = _newer(folded_constants(model, out))
    for index, node in enumerate(graph.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    graph = onnx.shape_inference.infer_shapes(graph)
    onnx.save_model(graph, str(out))
    return graph


def _newer(model: onnx.ModelProto) -> onnx.ModelProto:
    if opset_of(model) >= _OPSET_MIN:
        return model
    try:
        return onnx.version_converter.convert_version(model, _OPSET_MIN)
    except Exception as error:  # the converter raises whatever its C++ side threw
        raise QuantiseFailed(
            f"The model has opset {opset_of(model)} and cannot be converted to {_OPSET_MIN}, which INT8 needs.",
            hint=f"Export the network again with opset {_OPSET_MIN} or newer.",
        ) from error


def _float_tensors(model: onnx.ModelProto) -> frozenset[str]:
    weights = {tensor.name for tensor in model.graph.initializer}
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return frozenset(floats - weights)


def _save(model: onnx.ModelProto, path: Path) -> None:
    onnx.save_model(model, str(path))
