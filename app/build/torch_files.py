"""What PyTorch files tell without PyTorch: weights, operators, and inputs where the file describes them.

Runs in a confined child. Nothing in a file is imported or run: names in a pickle stand for inert objects.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from app.build.export.traced_inputs import traced_inputs
from app.domain.errors import ModelInvalid
from app.domain.model_facts import ModelFacts
from app.domain.tensors import ANY, DType, TensorSpec

_PART_BYTES_MAX = 256 << 20
_CALL = re.compile(r"\btorch\.(_?[a-z]\w*)\(")
_NO_OPERATORS = frozenset(  # of numbers, lists and text: what checks of shapes are made of
    ("dim", "size", "len", "format", "list", "append", "eq", "ne", "lt", "le", "gt", "ge", "is_floating_point")
)
_DTYPES = {  # torch's ScalarType as its files number it
    **{1: DType.UINT8, 2: DType.INT8, 3: DType.INT16, 4: DType.INT32, 5: DType.INT64},
    **{6: DType.FLOAT16, 7: DType.FLOAT32, 8: DType.FLOAT64, 12: DType.BOOL, 28: DType.UINT16},
}
_DAMAGED = "Save the network again."


def torchscript_facts(path: Path) -> ModelFacts:
    """All but the inputs of a scripted module: those take PyTorch to find.

    Raises:
        ModelInvalid: the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            code = [_text(archive, name) for name in archive.namelist() if re.search(r"/code/.*\.py$", name)]
            weights = _Weights(io.BytesIO(_part(archive, "/data.pkl")))
            weights.load()
    except Exception as error:  # a hostile pickle can fail in every way
        raise ModelInvalid("The TorchScript file is damaged.", hint=_DAMAGED) from error
    names = _arguments(code, weights.root)
    traced = traced_inputs(path) or []
    return ModelFacts(
        size_bytes=path.stat().st_size,
        inputs=tuple(TensorSpec(name, *described) for name, described in zip(names, traced, strict=False)),
        outputs=(),
        opset=None,
        parameters=sum(weights.sizes.values()),
        operators=Counter(name for text in code for name in _CALL.findall(text) if name not in _NO_OPERATORS),
        needs_shapes=() if traced else tuple(names),
    )


def program_facts(path: Path) -> ModelFacts:
    """Everything of a .pt2 file: its graph is JSON.

    Raises:
        ModelInvalid: the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if re.search(r"/models/[^/]+\.json$", name))
            module = json.loads(_text(archive, name))["graph_module"]
            configs = [json.loads(_text(archive, name)) for name in archive.namelist() if name.endswith("_config.json")]
        graph, signature = module["graph"], module["signature"]
        inputs = [
            spec["user_input"]["arg"]["as_tensor"]["name"] for spec in signature["input_specs"] if "user_input" in spec
        ]
        outputs = [spec["user_output"]["arg"] for spec in signature["output_specs"] if "user_output" in spec]
        values = graph["tensor_values"]
        return ModelFacts(
            size_bytes=path.stat().st_size,
            inputs=tuple(_spec(name, values[name]) for name in inputs),
            outputs=tuple(
                _spec(arg["as_tensor"]["name"], values[arg["as_tensor"]["name"]])
                for arg in outputs
                if "as_tensor" in arg
            ),
            opset=None,
            parameters=sum(_weight_sizes(configs).values()),
            operators=Counter(str(node["target"]).removeprefix("torch.ops.") for node in graph["nodes"]),
        )
    except Exception as error:  # JSON of any form
        raise ModelInvalid("The .pt2 file is damaged.", hint=_DAMAGED) from error


class _Weights(pickle.Unpickler):
    """Reads which weights a module has, and the name of its class."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.sizes: dict[str, int] = {}  # by record: how many numbers
        self.root = ""

    def find_class(self, module: str, name: str) -> Any:
        self.root = self.root or f"{module}.{name}"
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        self.sizes[str(pid[2])] = int(pid[4])
        return _Inert()


class _Inert:
    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass


def _arguments(code: list[str], root: str) -> list[str]:
    """Names of the tensors that forward() of the module's class takes."""
    name = re.escape(root.rpartition(".")[2])
    for text in code:
        found = re.search(rf"^class {name}\(Module\):.*?^  def forward\(\w+: [^,)]*(.*?)\) ->", text, re.M | re.S)
        if found is not None:
            return re.findall(r"(\w+): (?:Optional\[Tensor\]|Tensor)(?=,|$)", found.group(1))
    return []


def _part(archive: zipfile.ZipFile, ending: str) -> bytes:
    name = next(name for name in archive.namelist() if name.endswith(ending))
    with archive.open(name) as file:
        return file.read(_PART_BYTES_MAX)


def _text(archive: zipfile.ZipFile, name: str) -> str:
    with archive.open(name) as file:
        return file.read(_PART_BYTES_MAX).decode()


def _spec(name: str, described: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name, _DTYPES[described["dtype"]], tuple(size.get("as_int", ANY) for size in described["sizes"]))


def _weight_sizes(configs: list[Any]) -> dict[str, int]:
    """By file: how many numbers it holds."""
    return {
        entry["path_name"]: prod(size.get("as_int", 0) for size in entry["tensor_meta"]["sizes"])
        for config in configs
        for entry in _entries(config)
        if entry.get("tensor_meta")
    }


def _entries(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from config["config"].values()
