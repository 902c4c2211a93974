"""Which layers lose most when a graph is quantised: for the report of an INT8 engine that was refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from app.backends.base import Samples
from app.build.quantise_ranges import observed
from app.build.quantise_tensorrt import WEIGHTED
from app.domain.tensors import Tensors

_SHOWN = 5
_RUNS = 8
_BEST_DB = 40.0  # what 8 bits keep of a tensor, about
_LEAST_LOST_DB = 1.0  # less is not worth a look
_PASSING = frozenset({"Add", "BatchNormalization", "Clip", "LeakyRelu", "Relu"})  # part of the layer before them


def worst_layers(plain: Path, quantised: Path, samples: Samples, rows: int) -> tuple[str, ...]:
    """The layers in which most is lost, the worst first, as in `conv2 (12.1 dB, 20.3 lost in it)`.

    Args:
        plain: the float graph that `quantised` was made from.
        rows: of a run.
    """
    before, after = onnx.load_model(str(plain)), onnx.load_model(str(quantised))
    ends = dict(_ends(before, after))
    runs = zip(
        observed(before, list(ends), samples, rows, quantised.with_suffix(".before.onnx")),
        observed(after, [theirs for _, theirs in ends.values()], samples, rows, quantised.with_suffix(".after.onnx")),
        strict=True,
    )
    kept = _sqnr(runs, {ours: theirs for ours, (_, theirs) in ends.items()})
    producers = {name: node for node in before.graph.node for name in node.output}
    lost = {name: min((_BEST_DB, *_behind(name, producers, kept))) - kept[name] for name in kept}
    worst = [name for name in sorted(lost, key=lambda name: -lost[name]) if lost[name] >= _LEAST_LOST_DB]
    return tuple(f"{ends[name][0]} ({kept[name]:.1f} dB, {lost[name]:.1f} lost in it)" for name in worst[:_SHOWN])


def _ends(before: onnx.ModelProto, after: onnx.ModelProto) -> Iterator[tuple[str, tuple[str, str]]]:
    """What each layer hands on in the float graph; the layer's name, and the same tensor in the quantised graph."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in before.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    rounded = _rounded(after)
    there = {name for node in after.graph.node for name in node.output}
    for node in before.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        name = node.output[0]
        while name not in rounded and len(readers.get(name, ())) == 1 and readers[name][0].op_type in _PASSING:
            name = readers[name][0].output[0]
        theirs = rounded.get(name, name)
        if theirs in there:
            yield name, (node.name, theirs)


def _rounded(model: onnx.ModelProto) -> dict[str, str]:
    """What is read in place of each tensor that is rounded."""
    integers = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    return {
        integers[node.input[0]]: node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in integers
    }


def _sqnr(runs: Iterator[tuple[Tensors, Tensors]], pairs: Mapping[str, str]) -> dict[str, float]:
    signal, noise = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 0.0)
    for _, (ours, theirs) in zip(range(_RUNS), runs, strict=False):
        for name, other in pairs.items():
            reference, quantised = ours[name].astype(np.float64), theirs[other].astype(np.float64)
            signal[name] += float(np.square(reference).sum())
            noise[name] += float(np.square(reference - quantised).sum())
    return {name: 10 * float(np.log10((signal[name] or 1e-300) / (noise[name] or 1e-300))) for name in pairs}


def _behind(name: str, producers: Mapping[str, onnx.NodeProto], kept: Mapping[str, float]) -> Iterator[float]:
    """SQNR of the nearest layers that the tensor is made from."""
    waiting, seen = list(producers[name].input), set[str]()
    while waiting:
        source = waiting.pop()
        if source in seen or source not in producers:
            continue
        seen.add(source)
        if source in kept:
            yield kept[source]
        else:
            waiting.extend(producers[source].input)
