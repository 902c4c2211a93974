"""Q/DQ nodes where ONNX Runtime wants them: around whole operators, activations unsigned, weights per channel."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from app.backends.cpu import saturates
from app.build.quantise_ranges import Ranges

_OPERATORS = sorted({*QDQRegistry, *QLinearOpsRegistry})


def activations(model: onnx.ModelProto, floats: Collection[str]) -> list[str]:
    """The tensors whose ranges are needed, each once.

    Args:
        floats: the float32 tensors of the graph that are no weights.
    """
    names = (name for node in model.graph.node if node.op_type in _OPERATORS for name in (*node.input, *node.output))
    return list(dict.fromkeys(name for name in names if name in floats))


def placed(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """The graph with the nodes in it."""
    quantizer: Any = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=saturates(),
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, {name: _data(*ends) for name, ends in ranges.items()}),
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=_OPERATORS,
        extra_options={},
    )
    quantizer.quantize_model()
    quantised: onnx.ModelProto = quantizer.model.model
    return quantised


def _data(low: float, high: float) -> Any:
    return TensorData(lowest=np.float32(low), highest=np.float32(high))
