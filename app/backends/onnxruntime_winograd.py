"""3×3 convolutions with two thirds of the products: Winograd's minimal filtering F(2, 3), down the lines of an image.

Two lines of the output come from four of the input, d0 … d3, and the lines of the kernel, g0 … g2:

    m1 = (d0 - d2) * g0                  m2 = (d1 + d2) * (g0 + g1 + g2) / 2
    m4 = (d1 - d3) * g2                  m3 = (d2 - d1) * (g0 - g1 + g2) / 2
    y0 = m1 + m2 + m3                    y1 = m2 - m3 - m4

Each product is a convolution of 1×3 over all channels: four of them for two lines instead of six. Even and odd lines
stay apart, as two tensors, from one convolution to the next, and are put together where an operator needs them so.
Sums of lines are convolutions by channel, and additions: these ONNX Runtime keeps in its blocked layout of channels
(NCHWc), and fuses; a subtraction would make it convert there and back.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015, section 4.1, in one dimension.

Imports the onnx package: for the build child only.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from app.backends.onnxruntime_models import opset_of, split_tensors
from app.backends.onnxruntime_rewriting import Conv, GraphWriter, attributes_of, shapes_of

_CHANNELS_MIN = 48  # below, the sums take as long as the products that are saved, at least with several threads
_LINES_MIN = 7
_OPSET_MIN = 10  # since when Slice takes its bounds as inputs
_BLOCK = 16  # channels of the blocked layout, at most
_BY_ELEMENT = {"Relu", "LeakyRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"}


class Lines(NamedTuple):
    """A tensor as two: its even lines (0, 2, …) and its odd ones, along axis 2."""

    even: str
    odd: str


class _Open(NamedTuple):
    """A convolution whose last sums are still to be written; the names are those above."""

    conv: Conv
    d0_d2: str
    d1_d3: str
    m2: str
    m3: str


def may_gain(path: Path) -> bool:
    """Whether a look at the file leaves it open that convolutions would be rewritten: there are some, and all its
    weights are in it."""
    model = onnx.load_model(str(path), load_external_data=False)
    return any(node.op_type == "Conv" for node in model.graph.node) and not split_tensors(model)


def rewrite_file(path: Path) -> int:
    """`rewrite` on a file."""
    model = onnx.load_model(str(path))
    count = rewrite(model)
    if count:
        onnx.save_model(model, str(path))
    return count


def rewrite(model: onnx.ModelProto) -> int:
    """Rewrite the convolutions that gain by it.

    Args:
        model: plain ONNX with its constants folded; changed in place.

    Returns:
        How many were rewritten; with 0 the model is as it was.
    """
    has_graphs = any(attribute.HasField("g") or attribute.graphs for n in model.graph.node for attribute in n.attribute)
    if has_graphs or model.functions or opset_of(model) < _OPSET_MIN:  # graphs may use tensors of this one by name
        return 0
    return _Rewriting(model).done()


class _Rewriting:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._shapes = shapes_of(model)
        given = {value.name for value in model.graph.input}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in given}
        self._writer = GraphWriter(model.graph, "winograd")
        self._lines: dict[str, Lines] = {}
        self._apart: set[str] = set()  # of these there are only the lines so far,
        self._open: dict[str, _Open] = {}  # or not even they
        self._differences: dict[str, str] = {}  # odd lines less even ones; as many as there are even ones
        self._uses = Counter(name for node in model.graph.node for name in node.input)
        self._uses.update(value.name for value in model.graph.output)
        self._count = 0

    def done(self) -> int:
        for node in self._graph.node:
            if not self._is_rewritten(node):
                for name in node.input:
                    self._join(name)
                self._writer.keep(node)
        for value in self._graph.output:
            self._join(value.name)
        if self._count:
            self._writer.write(self._graph)
        return self._count

    def _is_rewritten(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Conv" and (conv := self._conv(node)) is not None:
            if self._gains(conv):
                self._filter(conv)
                return True
            return node.input[0] in self._apart and self._conv_of_lines(conv)
        return any(name in self._apart for name in node.input) and self._by_line(node)

    # --- convolutions ------------------------------------------------------------------------------------------------

    def _conv(self, node: onnx.NodeProto) -> Conv | None:
        """What the node asks for; None when that is not known or not plain."""
        weights = self._weights.get(node.input[1])
        attributes = attributes_of(node)
        is_plain = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and set(attributes.get("dilations", (1,))) == {1}
        if weights is None or weights.data_type != TensorProto.FLOAT or not is_plain or not self._are_images(node):
            return None
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        down, across = attributes.get("strides", (1, 1))
        return Conv(node, weights, attributes, weights.dims[2], down, top, bottom, left, right, across)

    def _gains(self, conv: Conv) -> bool:
        filters, channels, height, width = conv.weights.dims
        is_alike = (height, conv.stride, conv.top, conv.bottom) == (3, 1, 1, 1) and width >= 3
        is_blocked = channels % _BLOCK == filters % _BLOCK == 0 and conv.attributes.get("group", 1) == 1
        is_large = min(channels, filters) >= _CHANNELS_MIN and self._shapes[conv.node.input[0]][2] >= _LINES_MIN
        return is_alike and is_blocked and is_large

    def _filter(self, conv: Conv) -> None:
        """F(2, 3), but for the last sums: what is added to the answer may be added before. With an odd number of lines
        the last pair lacks its second: `missing` is 1."""
        name = conv.node.input[0]
        even, odd = self._split(name)
        missing = self._shapes[name][2] % 2
        kernel = numpy_helper.to_array(conv.weights)
        channels = kernel.shape[1]
        g0, g1, g2 = (kernel[:, :, line : line + 1] for line in range(3))
        write, sums = self._writer, self._writer.by_channel

        d1_and_d2 = write.node("Add", even, sums(odd, channels, [1], bottom=1) if missing else odd)
        d2_d1 = write.node("Add", sums(even, channels, [-2]), d1_and_d2)
        self._differences[name] = d2_d1
        self._open[conv.node.output[0]] = _Open(
            conv,
            sums(odd, channels, [1, -1], top=1, bottom=missing),
            sums(even, channels, [1, -1], bottom=1 - missing),
            self._product(conv, d1_and_d2, (g0 + g1 + g2) / 2, *conv.bias),
            self._product(conv, d2_d1, (g0 - g1 + g2) / 2),
        )
        self._apart.add(conv.node.output[0])
        self._count += 1

    def _closed(self, opened: _Open, result: str, added: str = "") -> None:
        """The last sums of `_filter`, and another tensor of the same shape."""
        kernel = numpy_helper.to_array(opened.conv.weights)
        filters, missing = len(kernel), self._shapes[result][2] % 2
        write, sums = self._writer, self._writer.by_channel
        m2, m3 = opened.m2, opened.m3
        if added:
            m2 = write.node("Add", m2, self._split(added).even)
        m2_m3 = write.node(
            "Add",
            sums(m3, filters, [-1, 0] if missing else [-1]),
            sums(m2, filters, [1, 0]) if missing else m2,
        )
        if added:  # the odd lines have its even ones now, as m2 is in both
            m2_m3 = write.node("Add", m2_m3, self._difference(added))
        self._have_lines(
            result,
            write.node("Add", self._product(opened.conv, opened.d0_d2, kernel[:, :, :1]), write.node("Add", m2, m3)),
            write.node("Add", self._product(opened.conv, opened.d1_d3, -kernel[:, :, 2:]), m2_m3),
        )

    def _difference(self, name: str) -> str:
        """Odd lines less the even ones before them."""
        (even, odd), (_, channels, height, _) = self._split(name), self._shapes[name]
        missing, sums = height % 2, self._writer.by_channel
        if name in self._differences:
            found = self._differences[name]
            return sums(found, channels, [1, 0]) if missing else found
        return self._writer.node("Add", sums(even, channels, [-1, 0] if missing else [-1]), odd)

    def _conv_of_lines(self, conv: Conv) -> bool:
        """Other convolutions whose input is there as lines, where these can be used as they are."""
        even, odd = self._split(conv.node.input[0])
        result = conv.node.output[0]
        asked = (conv.height, conv.stride, conv.top, conv.bottom)
        if asked == (1, 1, 0, 0):
            self._have_lines(
                result, *(self._writer.node("Conv", lines, *conv.operands, **conv.attributes) for lines in (even, odd))
            )
        elif asked == (1, 2, 0, 0):
            self._writer.node(
                "Conv", even, *conv.operands, output=result, **{**conv.attributes, "strides": (1, conv.across)}
            )
        elif asked == (3, 2, 1, 1):
            kernel = numpy_helper.to_array(conv.weights)
            missing = self._shapes[conv.node.input[0]][2] % 2
            middle = self._product(conv, even, kernel[:, :, 1:2], *conv.bias)
            around = self._product(conv, odd, kernel[:, :, ::2], top=1, bottom=missing)
            self._writer.node("Add", around, middle, output=result)
        else:
            return False
        return True

    def _product(
        self, conv: Conv, lines: str, kernel: NDArray[np.float32], *bias: str, top: int = 0, bottom: int = 0
    ) -> str:
        """Each of these lines with another kernel; across, as before."""
        changed = {
            "kernel_shape": kernel.shape[2:],
            "pads": (top, conv.left, bottom, conv.right),
            "strides": (1, conv.across),
        }
        weights = self._writer.constant(kernel)
        return self._writer.node("Conv", lines, weights, *bias, **{**conv.attributes, **changed})

    # --- other operators ---------------------------------------------------------------------------------------------

    def _by_line(self, node: onnx.NodeProto) -> bool:
        """Write the node once for even and once for odd lines, where every line is by itself."""
        attributes = attributes_of(node)
        is_sum = node.op_type in {"Add", "Mul"} and self._shapes.get(node.input[0]) == self._shapes.get(node.input[1])
        is_concat = node.op_type == "Concat" and attributes["axis"] == 1
        if not (node.op_type in _BY_ELEMENT or is_sum or is_concat) or not self._are_images(node):
            return False
        for name, added in (node.input, reversed(node.input)) if node.op_type == "Add" else ():
            if name in self._open and self._uses[name] == 1:
                self._closed(self._open.pop(name), node.output[0], added)
                return True
        lines = [self._split(name) for name in node.input]
        self._have_lines(
            node.output[0], *(self._writer.node(node.op_type, *part, **attributes) for part in zip(*lines, strict=True))
        )
        return True

    def _are_images(self, node: onnx.NodeProto) -> bool:
        """Whether all it reads but weights, and all it writes, is known to be (rows, channels, lines, columns)."""
        read = node.input[:1] if node.op_type == "Conv" else node.input
        shapes = [self._shapes.get(name, ()) for name in (*read, *node.output)]
        return all(len(shape) == 4 and min(shape[1:]) > 0 for shape in shapes)

    # --- lines -------------------------------------------------------------------------------------------------------

    def _have_lines(self, name: str, even: str, odd: str) -> None:
        self._lines[name] = Lines(even, odd)
        self._apart.add(name)

    def _split(self, name: str) -> Lines:
        if name in self._open:
            self._closed(self._open.pop(name), name)
        if name not in self._lines:
            channels = self._shapes[name][1]
            by_channel = self._writer.by_channel
            self._lines[name] = Lines(
                by_channel(name, channels, [1], stride=2), by_channel(name, channels, [0, 1], stride=2)
            )
        return self._lines[name]

    def _join(self, name: str) -> None:
        """Make the tensor out of its lines, if it is not there: side by side, an even and an odd line are two lines."""
        if name not in self._apart:
            return
        even, odd = self._split(name)
        self._apart.remove(name)
        _, channels, height, width = self._shapes[name]
        write = self._writer
        if height % 2:
            odd = write.by_channel(odd, channels, [1], bottom=1)
        pairs = write.node("Concat", even, odd, axis=3)
        shape = write.constant(np.array([0, channels, height + height % 2, width]))
        if height % 2 == 0:
            write.node("Reshape", pairs, shape, output=name)
            return
        whole = write.node("Reshape", pairs, shape)
        bounds = [write.constant(np.array([number])) for number in (0, height, 2)]
        write.node("Slice", whole, *bounds, output=name)
