"""A .pt2 file before and while it is loaded: it must describe a graph and weights, and run nothing.

torch.export.load unpickles weights, constants and example inputs, hands expressions to sympy's parser, which evaluates
them as Python, looks operators up along any attribute of torch, and writes names and guards into Python that it runs.
This is a second lock behind the confinement.
"""

from __future__ import annotations

import ast
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.domain.errors import ModelUnsafe

_JSON_BYTES_MAX = 256 << 20
_OPERATORS = re.compile(
    r"torch\.ops\.(?:aten|prims|higher_order|quantized|quantized_decomposed|torchvision)\.\w+(?:\.\w+)?"
    r"|_operator\.\w+|math\.\w+|torch\.(?:_?sym_\w+|amp\.autocast_mode\._(?:enter|exit)_autocast)"
    r"|torch\._C\._set_grad_enabled"
)
_NAME = re.compile(r"[\w.]{0,500}")
_EXPRESSIONS = re.compile(  # what sympy's srepr writes of the lengths of tensors
    "Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|FloorDiv|CleanDiv|CeilDiv|PythonMod|ModularIndexing"
    "|floor|ceiling|Eq|Equality|Ne|Unequality|Lt|StrictLessThan|Le|LessThan|Gt|StrictGreaterThan|Ge|GreaterThan|And|Or"
    "|Not|Piecewise|ExprCondPair|Where|ToFloat|IntTrueDiv|FloatTrueDiv|TruncToInt|TruncToFloat|RoundToInt|true|false"
    "|oo|int_oo|nan|Infinity|NegativeInfinity|One|Zero|NegativeOne|Half|S|BooleanTrue|BooleanFalse"
    r"|[suz]\w{0,20}"  # a symbol itself
)


def check(path: Path) -> None:
    """Refuse a file that asks for more than tensors and operators.

    Raises:
        ModelUnsafe: it names what is no operator, or an expression that is no arithmetic.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".json"):
                    _check_values(_parsed(archive, info))
    except (zipfile.BadZipFile, OSError, ValueError, RecursionError) as error:
        raise _unsafe("a part of it cannot be read") from error


@contextmanager
def no_pickles() -> Iterator[None]:
    """While it lasts, torch.load reads tensors only, and other pickles are refused."""
    import torch  # here, so that a file can be checked without it

    load = torch.load

    def tensors_only(*arguments: Any, **options: Any) -> Any:
        try:
            return load(*arguments, **{**options, "weights_only": True})
        except MemoryError:
            raise
        except Exception as error:
            raise _unsafe("a part that should hold tensors holds other objects") from error

    with (
        _replaced(torch, "load", tensors_only),
        _replaced(pickle, "loads", _refuse),
        _replaced(torch._C, "_pickle_load_obj", _refuse),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, stand_in: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _parsed(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    if info.file_size > _JSON_BYTES_MAX:
        raise ValueError("too large")
    with archive.open(info) as file:
        return json.loads(file.read(_JSON_BYTES_MAX))


def _check_values(top: Any) -> None:
    rest = [top]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest.extend(value)
        elif isinstance(value, dict):
            _check_object(value)
            rest.extend(value.values())


def _check_object(value: dict[str, Any]) -> None:
    target = value.get("target")
    if "inputs" in value and isinstance(target, str) and not _OPERATORS.fullmatch(target):
        raise _unsafe(f"{target[:100]!r} is no operator of a network")
    for key in ("as_operator", "target_operator"):
        if isinstance(value.get(key), str) and not _OPERATORS.fullmatch(value[key]):
            raise _unsafe(f"{value[key][:100]!r} is no operator of a network")
    names = [value.get("name"), *(value.get("forward_arg_names") or ())]
    for name in names:  # they become part of generated Python
        if name is not None and not _NAME.fullmatch(str(name)):
            raise _unsafe(f"{str(name)[:100]!r} names no value")
    text = value.get("expr_str")
    if isinstance(text, str) and not _is_arithmetic(text):
        raise _unsafe(f"{text[:100]!r} is no arithmetic of lengths")


def _is_arithmetic(text: str) -> bool:
    """Whether it is made of numbers, strings that name symbols, and calls of sympy's own classes."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return all(_is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return _EXPRESSIONS.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, str) or re.fullmatch(r"\w{1,40}", node.value) is not None
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name)
    return isinstance(
        node, (ast.Expression, ast.Load, ast.keyword, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop, ast.Tuple)
    )


def _refuse(*arguments: Any, **options: Any) -> Any:
    raise _unsafe("it holds a pickled object")


def _unsafe(what: str) -> ModelUnsafe:
    return ModelUnsafe(
        f"The .pt2 file was not opened: {what}.",
        hint="Save it again with torch.export.save; a program with custom objects can be uploaded as ONNX.",
    )
