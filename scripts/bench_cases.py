"""What the benchmark asks: networks, inputs, requests of each protocol, and the answers that are right."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from load_generator import Kept, post
from numpy.typing import NDArray
from onnx import helper

from app.domain.preprocess import PRESETS, Preprocess, row_from_image
from tests import networks, samples

CLASSES = 1000
INPUTS = 8  # different ones of each network; requests take turns with them
TOLERANCE = 1e-3  # of the largest logit: kernels add in another order
IMAGENET = {"preset": "imagenet"}
Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One engine, its requests and their right answers."""

    name: str  # of the engine
    title: str
    model: bytes  # ONNX, to be uploaded
    options: dict[str, str]  # form fields of its build
    inputs: Array  # rows, as the engine takes them
    expected: Array  # (inputs, CLASSES): what the uploaded model answers in-process

    @property
    def row_bytes(self) -> int:
        return int(self.inputs[0].nbytes)

    def v2(self) -> list[bytes]:
        """Requests of the Open Inference Protocol with binary tensors."""
        return [self._v2(row) for row in self.inputs]

    def plain(self) -> list[bytes]:
        """Requests of /infer with the bare bytes, both ways."""
        kind = "application/octet-stream"
        headers = {"Content-Type": kind, "Accept": kind}
        return [post(f"/infer/{self.name}", row.tobytes(), headers) for row in self.inputs]

    def is_right(self, kept: Kept) -> bool:
        """Whether a binary answer is what the uploaded model says."""
        start = int(kept.headers.get("inference-header-content-length", 0))
        tensor = kept.body[start:]
        if kept.status != 200 or len(tensor) != 4 * CLASSES:
            return False
        return is_close(np.frombuffer(tensor, np.float32), self.expected[kept.request])

    def _v2(self, row: Array) -> bytes:
        tensor = {
            "name": "image",
            "shape": [1, *row.shape],
            "datatype": "UINT8" if row.dtype == np.uint8 else "FP32",
            "parameters": {"binary_data_size": row.nbytes},
        }
        wanted = {"name": "logits", "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return post(f"/v2/models/{self.name}/infer", head + row.tobytes(), headers)


@dataclass(frozen=True)
class JpegCase:
    """Photographs of 640×480 for an engine that takes uint8 images; the answer is the best five classes."""

    engine: str
    jpegs: Sequence[bytes]
    recipe: Preprocess  # the engine's own
    expected: Array  # (jpegs, CLASSES)

    def requests(self) -> list[bytes]:
        return [post(f"/infer/{self.engine}", jpeg, {"Content-Type": "image/jpeg"}) for jpeg in self.jpegs]

    def is_right(self, kept: Kept) -> bool:
        if kept.status != 200:
            return False
        logits = self.expected[kept.request]
        best = json.loads(kept.body)["predictions"][0]
        found = np.array([item["score"] for item in best], np.float32)
        # By value: two classes that nearly tie may change places.
        own = logits[[item["index"] for item in best]]
        return len(best) == 5 and is_close(found, own) and is_close(found, np.sort(logits)[::-1][:5])


def is_close(found: Array, wanted: Array) -> bool:
    return bool(np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max())


def tiny() -> Case:
    """A small convolutional network, 3×32×32 to 1,000 classes: what is left is the server's own cost."""
    random = np.random.default_rng(1)
    model = networks.network(
        [
            helper.make_node("Conv", ["image", "kernel"], ["maps"], strides=[4, 4]),
            helper.make_node("Relu", ["maps"], ["bent"]),
            helper.make_node("GlobalAveragePool", ["bent"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
        ],
        [networks.value("image", ["rows", 3, 32, 32])],
        [networks.value("logits", ["rows", CLASSES])],
        [
            networks.constant("kernel", random.normal(size=(8, 3, 4, 4)).astype(np.float32)),
            networks.constant("weights", random.normal(size=(8, CLASSES)).astype(np.float32)),
            networks.constant("bias", random.normal(size=CLASSES).astype(np.float32)),
        ],
    )
    rows = random.random((INPUTS, 3, 32, 32), np.float32)
    return Case("tiny", "tiny 3×32×32 float32", _bytes(model), {}, rows, reference(model)(rows))


def resnet18(width: int, side: int) -> Case:
    """ResNet-18 with seeded random weights."""
    model = networks.resnet18(width, side)
    rows = normalised(_pictures(side))
    return Case("resnet18", f"ResNet-18 {side}×{side} float32", _bytes(model), {}, rows, reference(model)(rows))


def resnet18_u8(width: int, side: int) -> Case:
    """The same, its normalisation in the graph: it takes uint8 images, rows × height × width × (B, G, R)."""
    model = networks.resnet18(width, side)
    pictures = _pictures(side)
    options = {"preprocess": json.dumps(IMAGENET), "fold_preprocess": "true"}
    expected = reference(model)(normalised(pictures))
    return Case("resnet18-u8", f"ResNet-18 {side}×{side} uint8", _bytes(model), options, pictures, expected)


def jpegs(case: Case, recipe: Preprocess) -> JpegCase:
    """Photographs for the engine of `case`.

    Args:
        recipe: of that engine: decoding, resizing and cutting; the arithmetic is in its graph.
    """
    encoded = [samples.encoded(samples.picture(seed, 640, 480)) for seed in range(INPUTS)]
    rows = np.stack([row_from_image(jpeg, recipe) for jpeg in encoded])
    expected = reference(onnx.load_from_string(case.model))(normalised(rows))
    return JpegCase(case.name, encoded, recipe, expected)


def normalised(pictures: Array) -> NDArray[np.float32]:
    """uint8 (rows, height, width, BGR) as the source model takes them: the arithmetic of the preset, written out."""
    preset = PRESETS["imagenet"]
    rgb = pictures[..., ::-1].astype(np.float32) / 255
    values = (rgb - np.array(preset["mean"], np.float32)) / np.array(preset["std"], np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


def reference(model: onnx.ModelProto) -> Callable[[Array], Array]:
    """The uploaded model by in-process ONNX Runtime, row by row."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda rows: np.concatenate([session.run(None, {"image": row[np.newaxis]})[0] for row in rows])


def _pictures(side: int) -> Array:
    return np.stack([samples.picture(seed, side, side) for seed in range(INPUTS)])


def _bytes(model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString()
    return data
