"""Engines as the Open Inference Protocol describes them: metadata, Triton's model configuration, statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.api.v2_tensors import DATATYPES
from app.domain.builds import EngineRecord
from app.domain.tensors import Shape, TensorSpec
from app.serving.batcher import rows_limit
from app.serving.statistics import RunTotals, Totals

_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}  # Triton's names


def metadata(record: EngineRecord, versions: Sequence[int]) -> dict[str, Any]:
    """Name, versions, and the native inputs and outputs.

    Args:
        versions: all that can be asked for, lowest first.
    """
    signature = record.built.signature
    return {
        "name": record.name,
        "versions": [str(version) for version in versions],
        "platform": _platform(record),
        "inputs": [_metadata_of(spec) for spec in signature.inputs],
        "outputs": [_metadata_of(spec) for spec in signature.outputs],
    }


def configuration(record: EngineRecord) -> dict[str, Any]:
    """Triton's model configuration; where rows can be joined, the batch axis is left out of the dims."""
    signature = record.built.signature
    is_batched = signature.rows_max > 1
    config: dict[str, Any] = {
        "name": record.name,
        "platform": _platform(record),
        "backend": record.built.facts.backend,
        "version_policy": {"all": {}},
        "max_batch_size": rows_limit(signature) if is_batched else 0,
        "input": [_configuration_of(spec, is_batched) | {"format": "FORMAT_NONE"} for spec in signature.inputs],
        "output": [_configuration_of(spec, is_batched) for spec in signature.outputs],
    }
    if is_batched:
        config["dynamic_batching"] = {"preferred_batch_size": [], "max_queue_delay_microseconds": 0}
    return config


def statistics(record: EngineRecord, totals: Totals) -> dict[str, Any]:
    """One version's entry in `model_stats`. There is no cache, so it has neither hits nor misses."""
    answered = totals.requests
    return {
        "name": record.name,
        "version": str(record.version),
        "last_inference": totals.last_answer_ms,
        "inference_count": totals.rows,
        "execution_count": totals.runs,
        "inference_stats": {
            "success": _duration(answered, totals.total_ns),
            "fail": _duration(totals.failures, totals.failed_ns),
            "queue": _duration(answered, totals.queue_ns),
            "compute_input": _duration(answered, totals.input_ns),
            "compute_infer": _duration(answered, totals.compute_ns),
            "compute_output": _duration(answered, totals.output_ns),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "response_stats": {},
        "batch_stats": [_batch(rows, runs) for rows, runs in sorted(totals.by_rows.items())],
        "memory_usage": [],
    }


def _batch(rows: int, of_length: RunTotals) -> dict[str, Any]:
    # Input and output are made for each request, not for each run.
    return {
        "batch_size": rows,
        "compute_input": _duration(of_length.runs, 0),
        "compute_infer": _duration(of_length.runs, of_length.compute_ns),
        "compute_output": _duration(of_length.runs, 0),
    }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def _metadata_of(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": list(spec.shape)}


def _configuration_of(spec: TensorSpec, is_batched: bool) -> dict[str, Any]:
    dims: Shape = spec.shape[1:] if is_batched else spec.shape
    return {"name": spec.name, "data_type": f"TYPE_{DATATYPES[spec.dtype]}", "dims": list(dims)}


def _platform(record: EngineRecord) -> str:
    backend = record.built.facts.backend
    return _PLATFORMS.get(backend, backend)
