"""The metrics that Triton has, under Triton's names: what perf_analyzer and dashboards made for Triton read.

Written here and not by prometheus-client: perf_analyzer takes `name{gpu_uuid="…"} digits` and nothing else, so a number
may have no exponent; and Triton's counters do not end in `_total`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from app.backends.nvml import GpuReading
from app.serving.statistics import Totals

_GPU: tuple[tuple[str, str, Callable[[GpuReading], float | None]], ...] = (
    ("nv_gpu_utilization", "gauge share of the time with work on the GPU, 0 to 1", lambda gpu: gpu.utilization),
    ("nv_gpu_memory_total_bytes", "gauge memory of the GPU, in bytes", lambda gpu: gpu.memory_total_bytes),
    ("nv_gpu_memory_used_bytes", "gauge memory in use on the GPU, in bytes", lambda gpu: gpu.memory_used_bytes),
    ("nv_gpu_power_usage", "gauge power of the GPU, in watts", lambda gpu: gpu.power_w),
    ("nv_gpu_power_limit", "gauge most power that the GPU may draw, in watts", lambda gpu: gpu.power_limit_w),
    ("nv_energy_consumption", "counter energy since the driver was loaded, in joules", lambda gpu: gpu.energy_j),
    ("nv_gpu_temperature", "gauge temperature of the GPU, in degrees Celsius", lambda gpu: gpu.temperature_c),
)
_INFERENCE: tuple[tuple[str, str, Callable[[Totals], int]], ...] = (
    ("nv_inference_request_success", "answered requests", lambda totals: totals.requests),
    ("nv_inference_request_failure", "requests that failed", lambda totals: totals.failures),
    ("nv_inference_count", "answered rows", lambda totals: totals.rows),
    ("nv_inference_exec_count", "runs of the engine", lambda totals: totals.runs),
    ("nv_inference_request_duration_us", "whole requests, in microseconds", lambda totals: totals.total_ns // 1000),
    ("nv_inference_queue_duration_us", "waiting for a run", lambda totals: totals.queue_ns // 1000),
    ("nv_inference_compute_input_duration_us", "bodies to tensors", lambda totals: totals.input_ns // 1000),
    ("nv_inference_compute_infer_duration_us", "runs", lambda totals: totals.compute_ns // 1000),
    ("nv_inference_compute_output_duration_us", "tensors to bodies", lambda totals: totals.output_ns // 1000),
)
_PENDING = "nv_inference_pending_request_count"
NAMES = (*(name for name, *_ in _GPU), *(name for name, *_ in _INFERENCE), _PENDING)


def triton_page(
    gpus: Sequence[GpuReading], known: Sequence[tuple[str, Totals]], waiting: Sequence[tuple[str, int]]
) -> str:
    """The families as Prometheus text; of GPUs only what they tell.

    Args:
        known: totals by `name:version`.
        waiting: rows that wait, by `name:version`.
    """
    lines: list[str] = []
    for name, about, figure in _GPU:
        values = [(gpu.uuid, value) for gpu in gpus if (value := figure(gpu)) is not None]
        if values:
            lines += _family(name, about, [(f'gpu_uuid="{uuid}"', value) for uuid, value in values])
    for name, about, count in _INFERENCE:
        lines += _family(name, f"counter {about}", [(_model(ref), count(totals)) for ref, totals in known])
    lines += _family(_PENDING, "gauge rows that wait for a run", [(_model(ref), rows) for ref, rows in waiting])
    return "\n".join(lines) + "\n"


def _family(name: str, about: str, samples: Iterable[tuple[str, float]]) -> list[str]:
    kind, _, words = about.partition(" ")
    head = [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
    return head + [f"{name}{{{labels}}} {_plain(value)}" for labels, value in samples]


def _model(ref: str) -> str:
    name, _, version = ref.partition(":")
    return f'model="{name}",version="{version}"'


def _plain(value: float) -> str:
    """The number without an exponent."""
    return str(value) if isinstance(value, int) else f"{value:.6f}"
