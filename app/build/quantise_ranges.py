"""The range of each activation over the calibration samples, in constant memory.

The smallest and largest values are found by the graph itself, in ReduceMin and ReduceMax nodes added to it. Entropy
and percentile need a second pass, which counts values into bins of the range found by the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from app.backends import registry
from app.backends.base import Samples
from app.build.samples import filled
from app.build.shapes import RunShapes
from app.domain.builds import Ranging
from app.domain.errors import EngineUnloadable, ExecutionFailed, QuantiseFailed
from app.domain.tensors import Tensor, Tensors

Ranges = Mapping[str, tuple[float, float]]  # by tensor: lowest and highest value

_ROWS = 2  # a run, where the model takes any number: more only cost memory
_BINS = 2048  # of absolute values
_VALUES_MAX = 1 << 16  # counted of a tensor in a run, evenly spread over it
_PERCENTILE = 99.99  # measured elsewhere: 99.9 ruins ResNet-50
_LEVELS = 128  # of a symmetric 8-bit integer, on one side
_STEP = 16  # bins between two thresholds that are tried


def measured_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    samples: Samples,
    shapes: RunShapes,
    ranging: Ranging,
    scratch: Path,
) -> Ranges:
    """The range of each tensor.

    Args:
        scratch: a file that may be written.

    Raises:
        QuantiseFailed: the model fails on samples, or its values are not finite.
    """
    extremes = _extremes(model, tensors, samples, shapes, scratch)
    if ranging is Ranging.MINMAX:
        return extremes
    histograms = _histograms(model, extremes, samples, shapes, scratch)
    narrow = _entropy if ranging is Ranging.ENTROPY else _percentile
    return {name: narrow(histograms[name], *extremes[name]) for name in tensors}


def observed(
    model: onnx.ModelProto, names: Sequence[str], samples: Samples, rows: int, scratch: Path
) -> Iterator[Tensors]:
    """These float tensors of the graph, run after run."""
    inputs = {value.name for value in model.graph.input}
    outputs = {name: f"seen/{index}" if name in inputs else name for index, name in enumerate(names)}
    # A graph cannot hand out an input as it is.
    nodes = [helper.make_node("Identity", [name], [output]) for name, output in outputs.items() if name != output]
    _save_with(model, nodes, list(outputs.values()), scratch)
    for answer in _runs(scratch, samples, rows):
        yield dict(zip(names, answer.values(), strict=True))


def rows_of_a_run(shapes: RunShapes, wanted: int) -> int:
    return wanted if shapes.takes_rows(wanted) else shapes.rows


def _extremes(
    model: onnx.ModelProto, tensors: Sequence[str], samples: Samples, shapes: RunShapes, scratch: Path
) -> dict[str, tuple[float, float]]:
    ends = [(kind, index, name) for kind in ("Min", "Max") for index, name in enumerate(tensors)]
    nodes = [helper.make_node(f"Reduce{kind}", [name], [f"{kind}/{index}"], keepdims=0) for kind, index, name in ends]
    _save_with(model, nodes, [node.output[0] for node in nodes], scratch)
    low, high = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf)
    for answer in _runs(scratch, samples, rows_of_a_run(shapes, _ROWS)):
        values = np.array([float(value) for value in answer.values()])
        low, high = np.minimum(low, values[: len(tensors)]), np.maximum(high, values[len(tensors) :])
    for name, *ends in zip(tensors, low, high, strict=True):
        if not np.isfinite(ends).all():
            raise QuantiseFailed(
                f"The tensor {name!r} has NaN or infinities on the calibration samples.",
                hint="Look for a division or logarithm of 0 in the network, or build with precision=fp32.",
            )
    return {name: (float(a), float(b)) for name, a, b in zip(tensors, low, high, strict=True)}


def _save_with(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], path: Path) -> None:
    """Write the model with more nodes and other outputs, float32 tensors all. No copy is made of its weights."""
    count, kept = len(model.graph.node), list(model.graph.output)
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    onnx.save_model(model, str(path))
    del model.graph.node[count:]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _runs(model: Path, samples: Samples, rows: int) -> Iterator[Tensors]:
    """The answers to every sample; the model's file is removed once it is loaded."""
    try:
        with closing(registry.backend("onnxruntime").load(model)) as engine:
            model.unlink()
            with closing(engine.open_context()) as context:
                for batch in samples.batches(rows):
                    yield context.run(filled(batch, rows))
    except (EngineUnloadable, ExecutionFailed) as error:
        raise QuantiseFailed(
            f"The model fails on the calibration samples: {error.detail}",
            hint="Check that the samples are what the model takes, or build with precision=fp32.",
        ) from error


# --- narrower ranges -----------------------------------------------------------------------------------------------

Counts = NDArray[np.int64]  # of values in 2 · _BINS bins from −limit to limit


def _histograms(
    model: onnx.ModelProto, extremes: Ranges, samples: Samples, shapes: RunShapes, scratch: Path
) -> dict[str, Counts]:
    counts = {name: np.zeros(2 * _BINS, np.int64) for name in extremes}
    for answer in observed(model, list(extremes), samples, rows_of_a_run(shapes, 1), scratch):
        for name, tensor in answer.items():
            counts[name] += _counted(tensor, _limit(*extremes[name]))
    return counts


def _counted(tensor: Tensor, limit: float) -> Counts:
    flat = tensor.ravel()
    values = flat[:: (len(flat) // _VALUES_MAX) | 1].astype(np.float64)  # an odd step: even ones see few columns
    bins = ((values + limit) * (_BINS / limit)).astype(np.int64)
    return np.bincount(np.clip(bins, 0, 2 * _BINS - 1), minlength=2 * _BINS)


def _limit(low: float, high: float) -> float:
    return max(abs(low), abs(high)) or 1.0


def _percentile(counts: Counts, low: float, high: float) -> tuple[float, float]:
    limit = _limit(low, high)
    edges = np.linspace(-limit, limit, 2 * _BINS + 1)
    share = np.cumsum(counts) / counts.sum()
    first, last = np.searchsorted(share, (1 - _PERCENTILE / 100, _PERCENTILE / 100))
    return max(low, float(edges[first])), min(high, float(edges[min(last + 1, 2 * _BINS)]))


def _entropy(counts: Counts, low: float, high: float) -> tuple[float, float]:
    """Clip where the clipped and rounded values are distributed most as the values themselves.

    Source:
        S. Migacz, "8-bit Inference with TensorRT", GTC 2017: the threshold of least Kullback–Leibler divergence.
    """
    limit = _limit(low, high)
    absolute = (counts[_BINS:] + counts[_BINS - 1 :: -1]).astype(np.float64)
    absolute[0] = absolute[1]  # the zeros after a Relu say nothing about its range
    divergences = {bins: _divergence(absolute, bins) for bins in range(_LEVELS, _BINS + 1, _STEP)}
    threshold = min(divergences, key=divergences.__getitem__) * limit / _BINS
    return max(low, -threshold), min(high, threshold)


def _divergence(absolute: NDArray[np.float64], bins: int) -> float:
    inside = absolute[:bins]
    reference = inside.copy()
    reference[-1] += absolute[bins:].sum()
    starts = np.arange(_LEVELS) * bins // _LEVELS
    filled_bins = np.add.reduceat((inside > 0).astype(np.float64), starts)
    means = np.add.reduceat(inside, starts) / np.maximum(filled_bins, 1)
    rounded = np.repeat(means, np.diff([*starts, bins])) * (inside > 0)
    present = reference > 0
    if not present.any() or not rounded.any():
        return np.inf
    p = reference[present] / reference.sum()
    q = np.maximum(rounded[present] / rounded.sum(), 1e-12)
    return float(np.sum(p * np.log(p / q)))
