"""What an uploaded file tells about its network before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.domain.tensors import TensorSpec


@dataclass(frozen=True)
class ModelFacts:
    size_bytes: int
    inputs: tuple[TensorSpec, ...]  # an input that `needs_shapes` names has () or -1 where nothing is known
    outputs: tuple[TensorSpec, ...]  # empty when the file does not say
    opset: int | None  # None: no ONNX
    parameters: int | None  # numbers stored in the file; None: not told
    operators: Mapping[str, int]  # by name: how often it is used; of TorchScript: how often its code names it
    refused_by: Mapping[str, str] = field(default_factory=dict)  # by backend, of those that need no GPU: why not
    needs_shapes: tuple[str, ...] = ()  # inputs whose shapes the build has to be told
    hint: str = ""  # how to tell them
