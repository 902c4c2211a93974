"""What must be known of the ONNX file itself. Imports the onnx package: for the build child only."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from app.domain.errors import CompileFailed

_PARSED_DOMAINS = ("", "ai.onnx", "com.microsoft")  # of which TensorRT's parser knows operators by their bare names


class OnnxFile:
    def __init__(self, path: Path) -> None:
        """Read the graph; weights in other files stay there.

        Raises:
            CompileFailed: it is not an ONNX file.
        """
        self.path = path
        try:
            self._model = onnx.load_model(str(path), load_external_data=False)
        except Exception as error:  # protobuf's own kinds differ by its implementation
            raise CompileFailed(
                "The file cannot be read as ONNX.", hint="Export the model again, and check it with onnx.checker."
            ) from error

    def int64_names(self) -> list[str]:
        """Inputs and outputs of type INT64."""
        return self._names(TensorProto.INT64)

    def float64_names(self) -> list[str]:
        """Inputs and outputs of type FLOAT64, which TensorRT reads as if they were FLOAT32."""
        return self._names(TensorProto.DOUBLE)

    def _names(self, kind: int) -> list[str]:
        values = (*self._model.graph.input, *self._model.graph.output)
        return [value.name for value in values if value.type.tensor_type.elem_type == kind]

    def unsupported(self, supports: Callable[[str], bool], plugins: frozenset[str]) -> Counter[str]:
        """Operators that neither the parser, a plugin nor the model itself has, by how often they are used.

        Args:
            supports: whether the parser has an operator of that name.
            plugins: names of the plugins that are installed.
        """
        own = {(function.domain, function.name) for function in self._model.functions}
        return Counter(
            f"{node.domain or 'ai.onnx'}::{node.op_type}"
            for node in self._nodes()
            if (node.domain, node.op_type) not in own
            and node.op_type not in plugins
            and not (node.domain in _PARSED_DOMAINS and supports(node.op_type))
        )

    def digest(self) -> str:
        """Of the file and of the files that hold its weights."""
        digest = hashlib.sha256()
        for path in (self.path, *self._weight_files()):
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
        return digest.hexdigest()

    def _weight_files(self) -> list[Path]:
        names = {
            entry.value
            for tensor in self._model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        return [self.path.parent / name for name in sorted(names)]

    def _nodes(self) -> Iterator[onnx.NodeProto]:
        graphs = [self._model.graph]
        nodes = [node for function in self._model.functions for node in function.node]
        while graphs:
            nodes.extend(graphs.pop().node)
            while nodes:
                node = nodes.pop()
                yield node
                for attribute in node.attribute:
                    graphs.extend(attribute.graphs)
                    if attribute.HasField("g"):
                        graphs.append(attribute.g)
        yield from nodes
