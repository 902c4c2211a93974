"""PyTorch networks as uploaded, opened: what they are called with, and what they answer. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from app.build.export import pt2_check
from app.build.export.traced_inputs import traced_inputs
from app.domain.builds import ModelFormat
from app.domain.errors import ExportFailed, ModelUnsafe, SourceFailed
from app.domain.tensors import DType, Shape, Tensors, shape_text

_REFUSED_BY_SYSTEM = ("Permission denied", "Operation not permitted")
_SIGNS_OF_WANT = ("allocate memory", "bad_alloc")
_LONGEST = 2**31 - 1


@dataclass(frozen=True)
class Known:
    """What a file itself says about one input."""

    dtype: DType
    shape: Shape  # of an example
    free: Mapping[int, tuple[int, int]]  # axes that may have other lengths: the least and the largest


class Network(Protocol):
    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def known(self) -> tuple[Known, ...] | None:
        """By input; None when the file does not say."""
        ...

    def run(self, inputs: Tensors) -> Tensors:
        """All outputs by name, in the network's order.

        Raises:
            SourceFailed: the network fails on these inputs.
        """
        ...


class Script:
    """A TorchScript module."""

    def __init__(self, path: Path) -> None:
        self.module = _opened(path).eval()
        self.inputs = _tensor_arguments(self.module.forward.schema)
        self.known = _known_of(path, len(self.inputs))

    def run(self, inputs: Tensors) -> Tensors:
        return _answer(self.module, [inputs[name] for name in self.inputs])

    @property
    def graph(self) -> Any:
        """The module's graph, with all its submodules' inside."""
        return self.module.inlined_graph


class Program:
    """A program of torch.export."""

    def __init__(self, path: Path) -> None:
        pt2_check.check(path)
        self.program = _loaded_program(path)
        self.program._guards_code = []  # Python text from the file, which module() would run
        self._module = self.program.module(check_guards=False)
        places = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        wanted = self.program.graph_signature.user_inputs
        chosen = [node for node in places if node.name in wanted]
        if len(chosen) != len(wanted) or not all(isinstance(node.meta.get("val"), torch.Tensor) for node in chosen):
            raise ExportFailed(
                "The program takes inputs that are not tensors; an engine takes tensors only.",
                hint="Make such arguments constants of the network, and export it again.",
            )
        self.inputs = tuple(node.name for node in chosen)
        self.known = tuple(_known_of_place(node.meta["val"], self.program.range_constraints) for node in chosen)
        self._example = self.program.example_inputs

    def run(self, inputs: Tensors) -> Tensors:
        tensors = iter([inputs[name] for name in self.inputs])
        if self._example is None:
            return _answer(self._module, list(tensors))
        # Keyword arguments and nested ones keep their places.
        arguments, named = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda _: torch.from_numpy(next(tensors)), self._example
        )
        return _answer(self._module, list(arguments), named)


def opened(path: Path, format: ModelFormat) -> Script | Program:
    """Open an uploaded network. Only in a confined process: this may run what the file says.

    Raises:
        ExportFailed: it is damaged, or not of this version of PyTorch.
        ModelUnsafe: it tried to do more than compute.
    """
    return Program(path) if format is ModelFormat.PT2 else Script(path)


def named_leaves(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in an answer, however it is nested, with a name that says where."""
    if isinstance(value, torch.Tensor):
        yield name or "output", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_leaves(item, _joined(name, str(key)))
    elif isinstance(value, (tuple, list)):
        fields: Sequence[str] = getattr(
            value, "_fields", [f"output_{i}" if not name else str(i) for i in range(len(value))]
        )
        for key, item in zip(fields, value, strict=True):
            yield from named_leaves(item, _joined(name, key))


def words(error: BaseException) -> str:
    """The line of an error that says most, without the traceback of the interpreter of TorchScript."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("RuntimeError:", "torch.jit.Error:", "builtins."))]
    line = (telling or lines or [type(error).__name__])[0]
    return line.removeprefix("RuntimeError: ").strip()[:300]


def _opened(path: Path) -> Any:
    try:
        return torch.jit.load(str(path), map_location="cpu")
    except Exception as error:
        refuse_fatal(error)
        raise ExportFailed(
            f"PyTorch {torch.__version__} cannot open the TorchScript file: {words(error)}",
            hint="Save it again: torch.jit.save(torch.jit.script(model.eval()), 'model.pt'). Operators of other"
            " packages are missing here.",
        ) from error


def _loaded_program(path: Path) -> Any:
    try:
        with pt2_check.no_pickles():
            return torch.export.load(str(path))
    except Exception as error:
        refuse_fatal(error)
        raise ExportFailed(
            f"PyTorch {torch.__version__} cannot open the .pt2 file: {words(error)}",
            hint="Save it again with this version: torch.export.save(torch.export.export(model, (example,)),"
            " 'model.pt2').",
        ) from error


def refuse_fatal(error: Exception) -> None:
    """Let errors through that say more than that this step failed.

    Raises:
        MemoryError: torch was refused memory, which it tells by other exceptions.
        ModelUnsafe: the system refused what the file tried to do.
    """
    if isinstance(error, (MemoryError, ModelUnsafe)):
        raise error
    if any(sign in str(error) for sign in _SIGNS_OF_WANT):
        raise MemoryError(str(error)) from error
    if isinstance(error, PermissionError) or any(sign in str(error) for sign in _REFUSED_BY_SYSTEM):
        raise ModelUnsafe(
            f"The file tried to reach what a network has no need of, and was stopped: {words(error)}",
            hint="Find out who made the file. A network that only computes opens here.",
        ) from error


def _tensor_arguments(schema: Any) -> tuple[str, ...]:
    names = []
    for argument in schema.arguments[1:]:
        kind = str(argument.type)
        if argument.has_default_value() and kind != "Tensor":
            continue  # it keeps its default
        if kind not in ("Tensor", "Optional[Tensor]"):
            raise ExportFailed(
                f"The network's argument {argument.name!r} is of type {kind}; an engine takes tensors only.",
                hint="Give the argument a default value, or make it a constant of the network, and save it again.",
            )
        names.append(argument.name)
    return tuple(names)


def _known_of(path: Path, count: int) -> tuple[Known, ...] | None:
    """What a trace says of the example it was made with."""
    traced = traced_inputs(path)
    return tuple(Known(dtype, shape, {}) for dtype, shape in traced) if traced and len(traced) == count else None


def _known_of_place(value: Any, constraints: Mapping[Any, Any]) -> Known:
    lengths, free = [], {}
    for axis, length in enumerate(value.shape):
        if isinstance(length, int):
            lengths.append(length)
            continue
        allowed = constraints.get(length.node.expr)
        least = max(0, int(allowed.lower)) if allowed is not None and allowed.lower.is_Integer else 0
        most = int(allowed.upper) if allowed is not None and allowed.upper.is_Integer else _LONGEST
        free[axis] = least, min(most, _LONGEST)
        lengths.append(length.node.hint if length.node.hint is not None else max(2, least))
    return Known(_dtype(value.dtype), tuple(map(int, lengths)), free)


def dtype_of(tensor: torch.Tensor) -> DType:
    return _dtype(tensor.dtype)


def _dtype(kind: torch.dtype) -> DType:
    try:
        return DType(str(kind).removeprefix("torch."))
    except ValueError as error:
        raise ExportFailed(
            f"The network takes or answers {kind}, which engines cannot carry.",
            hint="Convert it before saving: model.float() makes every weight float32.",
        ) from error


def _answer(module: Any, inputs: list[Any], named: Mapping[str, Any] | None = None) -> Tensors:
    tensors = [torch.from_numpy(value) if not isinstance(value, torch.Tensor) else value for value in inputs]
    try:
        with torch.no_grad():
            leaves = dict(named_leaves(module(*tensors, **(named or {}))))
    except Exception as error:
        refuse_fatal(error)
        sizes = ", ".join(shape_text(tuple(tensor.shape)) for tensor in tensors)
        raise SourceFailed(
            f"The uploaded network fails on inputs of the shapes {sizes}: {words(error)}",
            hint="Run it in PyTorch on inputs of these shapes; give input_shapes that it accepts.",
        ) from error
    if not leaves:
        raise ExportFailed("The network answers no tensor.", hint="Let its forward() return what it computes.")
    return {name: _array(tensor) for name, tensor in leaves.items()}


def _array(tensor: torch.Tensor) -> Any:
    _dtype(tensor.dtype)
    return tensor.detach().contiguous().numpy()


def _joined(name: str, key: str) -> str:
    return f"{name}_{key}" if name else key
