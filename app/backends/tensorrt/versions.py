"""What the installed TensorRT has: asked of the module itself, never guessed from its number."""

from __future__ import annotations

from typing import Any

import numpy as np

from app.domain.builds import Precision
from app.domain.errors import CompileFailed
from app.domain.tensors import DType

_SCRATCH_MIN = 256  # bytes: TensorRT's alignment
_DTYPES = {
    "FLOAT": DType.FLOAT32,
    "HALF": DType.FLOAT16,
    "INT8": DType.INT8,
    "INT32": DType.INT32,
    "INT64": DType.INT64,
    "BOOL": DType.BOOL,
    "UINT8": DType.UINT8,
}


def has_precision_flags(trt: Any) -> bool:
    """Whether FP16 and INT8 are asked for by flags (to 10.x) rather than by the graph's own types (11)."""
    return hasattr(trt.BuilderFlag, "FP16")


def has_calibrators(trt: Any) -> bool:
    return hasattr(trt, "IInt8EntropyCalibrator2")


def has_int64(trt: Any) -> bool:
    """Whether INT64 is a type of its own; older versions compute with INT32 in its place."""
    return hasattr(trt.DataType, "INT64")


def shares_profiles(trt: Any) -> bool:
    """Whether several contexts may use one optimisation profile: by themselves since 10, by a preview in 8.6."""
    return not hasattr(trt.ICudaEngine, "num_bindings") or sharing_preview(trt) is not None


def sharing_preview(trt: Any) -> Any | None:
    """The preview feature that lets contexts share a profile; None where there is none to switch on."""
    return getattr(trt.PreviewFeature, "PROFILE_SHARING_0806", None)


def has_levels(trt: Any) -> bool:
    """Whether the builder has optimisation levels: since 8.6."""
    return hasattr(trt.IBuilderConfig, "builder_optimization_level")


def opset_max(trt: Any) -> int:
    """Newest opset that its parser reads: the one thing that no name in the module tells.

    Source: NVIDIA's release notes of the parser: 17 to 8.6, 20 in 10, 25 in 11.
    """
    major = int(trt.__version__.split(".")[0])
    return next(opset for since, opset in ((11, 25), (10, 20), (0, 17)) if major >= since)


def creation_flags(trt: Any) -> int:
    """Of a network that is read from ONNX: explicit batch to 10.x, the graph's own types in 11."""
    flags = trt.NetworkDefinitionCreationFlag
    if hasattr(flags, "EXPLICIT_BATCH"):
        return 1 << int(flags.EXPLICIT_BATCH)
    return 1 << int(flags.STRONGLY_TYPED)


def dtype_of(trt: Any, found: Any) -> DType | None:
    """The element type that engines carry; None for one that they cannot (bfloat16, fp8, int4)."""
    return next((dtype for name, dtype in _DTYPES.items() if getattr(trt.DataType, name, None) == found), None)


def flags_of(trt: Any, precision: Precision) -> list[Any]:
    """The builder flags of a precision; none where the graph carries it."""
    if not has_precision_flags(trt) or precision is Precision.FP32:
        return []
    half = [trt.BuilderFlag.FP16]
    return [trt.BuilderFlag.INT8, *half] if precision is Precision.INT8 else half


def scratch_bytes(engine: Any) -> int:
    """Scratch memory of one running context; never 0, as a context without any may refuse to run."""
    has_v2 = hasattr(engine, "device_memory_size_v2")
    return max(_SCRATCH_MIN, int(engine.device_memory_size_v2 if has_v2 else engine.device_memory_size))


def context_without_scratch(trt: Any, engine: Any) -> Any:
    """A new execution context whose scratch memory is handed to it; None where the runtime fails."""
    if hasattr(trt, "ExecutionContextAllocationStrategy"):
        return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    return engine.create_execution_context_without_device_memory()


def hand_scratch(context: Any, address: int, size_bytes: int) -> None:
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(address, size_bytes)
    else:
        context.device_memory = address


def numpy_of(trt: Any, found: Any) -> np.dtype[Any]:
    """The numpy dtype of a network's input.

    Raises:
        CompileFailed: there is none.
    """
    dtype = dtype_of(trt, found)
    if dtype is None:
        raise CompileFailed(
            f"An input of type {found} cannot be calibrated.", hint="Export the model with float32 inputs."
        )
    return dtype.numpy


def plugin_names(trt: Any) -> frozenset[str]:
    """Operators that installed plugins add."""
    registry = trt.get_plugin_registry()
    if registry is None:
        return frozenset()
    creators = registry.all_creators if hasattr(registry, "all_creators") else registry.plugin_creator_list
    return frozenset(creator.name for creator in creators)
