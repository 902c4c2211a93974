"""What the tests of the Open Inference Protocol ask, whichever client asks it."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
from onnx import helper

from tests import networks
from tests.service import ROOT, Service

DIGITS = ROOT / "examples" / "digits"
PNGS = [path.read_bytes() for path in sorted((DIGITS / "test").glob("*.png"))[:3]]
TENSORS: dict[str, np.ndarray[Any, Any]] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 65535]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "FP16": np.array([[-0.5, 0, 65504]], np.float16),
    "FP32": np.array([[-1.5, 0, 3e38]], np.float32),
    "FP64": np.array([[-1.5, 0, 1e308]], np.float64),
}


def built(service: Service, client: httpx.Client, model: Any, name: str, **fields: str) -> str:
    job = service.build(client, model.SerializeToString(), name, **fields)
    assert job["state"] == "succeeded", job
    return str(job["engine"])


def every_type_network() -> onnx.ModelProto:
    """An input and an output of every element type; each output is its input."""
    nodes, inputs, outputs = [], [], []
    for name, tensor in TENSORS.items():
        onnx_type = helper.np_dtype_to_tensor_dtype(tensor.dtype)
        nodes.append(helper.make_node("Identity", [name], [f"{name}_out"]))
        inputs.append(networks.value(name, ["rows", 3], onnx_type))
        outputs.append(networks.value(f"{name}_out", ["rows", 3], onnx_type))
    return networks.network(nodes, inputs, outputs)


def digits_rows(rows: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(rows).random((rows, 1, 8, 8), np.float32)


def reference(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    source = onnxruntime.InferenceSession(DIGITS / "digits.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(source.run(None, {"image": rows})[0])
