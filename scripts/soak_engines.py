"""The engines of the soak, and what in-process ONNX Runtime answers in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from tests import networks, samples

INPUTS = 16  # different rows of each engine
CLASSES = 10
TOLERANCE = 1e-3  # of the largest value: kernels add in another order
SIDE = 16
SWAPPED = "swap"  # the name that gets new versions
Array = NDArray[Any]


@dataclass(frozen=True)
class Truth:
    """One published network: what it is sent, and what it must answer."""

    model: bytes
    input: str
    rows: Array  # (INPUTS, …) float32
    expected: Array  # (INPUTS, CLASSES or fewer)
    images: tuple[bytes, ...] = ()  # the same rows as PNGs, for engines that take images

    def is_right(self, picked: list[int], answer: Array) -> bool:
        wanted = self.expected[picked]
        return answer.shape == wanted.shape and bool(
            np.abs(answer - wanted).max() <= TOLERANCE * max(np.abs(wanted).max(), 1e-6)
        )


def first_engines() -> dict[str, Truth]:
    """By name."""
    return {
        "small": _truth(_convolution(1), "image", _rows(SIDE)),
        "residual": _truth(networks.resnet18(8, 32, CLASSES), "image", _rows(32)),
        "pictures": _pictures(),
        SWAPPED: version(1),
    }


def version(number: int) -> Truth:
    """The network of that version of SWAPPED: each has weights of its own."""
    return _truth(_convolution(100 + number), "image", _rows(SIDE))


def _convolution(seed: int) -> onnx.ModelProto:
    random = np.random.default_rng(seed)
    return networks.network(
        [
            helper.make_node("Conv", ["image", "kernel"], ["maps"], strides=[2, 2]),
            helper.make_node("Relu", ["maps"], ["bent"]),
            helper.make_node("GlobalAveragePool", ["bent"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        [networks.value("image", ["rows", 3, SIDE, SIDE])],
        [networks.value("logits", ["rows", CLASSES])],
        [
            networks.constant("kernel", random.normal(size=(16, 3, 3, 3)).astype(np.float32)),
            networks.constant("weights", random.normal(size=(16, CLASSES)).astype(np.float32)),
        ],
    )


def _pictures() -> Truth:
    images = tuple(samples.encoded(samples.picture(seed, SIDE, SIDE), ".png") for seed in range(INPUTS))
    pixels = np.stack([np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)) for png in images])
    rows = (pixels[..., ::-1].transpose(0, 3, 1, 2) / 255).astype(np.float32)  # the recipe of an image input
    return _truth(networks.channel_means(SIDE, SIDE), "image", np.ascontiguousarray(rows), images)


def _truth(model: onnx.ModelProto, name: str, rows: Array, images: tuple[bytes, ...] = ()) -> Truth:
    data = model.SerializeToString()
    answered = _reference(data, name)
    return Truth(data, name, rows, np.concatenate([answered(row[np.newaxis]) for row in rows]), images)


def _reference(model: bytes, name: str) -> Callable[[Array], Array]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda rows: np.asarray(session.run(None, {name: rows})[0])


def _rows(side: int) -> Array:
    return np.random.default_rng(side).random((INPUTS, 3, side, side), np.float32)
