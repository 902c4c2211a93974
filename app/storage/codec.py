"""Domain types to JSON text and back, for database columns and for the files of a work folder."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


_adapters: dict[Any, TypeAdapter[Any]] = {}  # making one takes milliseconds


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def encode(value: Any) -> str:
    """JSON text of a domain dataclass. Floats must be finite: NaN and infinity have no place in a record."""
    return _adapter(type(value)).dump_json(value).decode()


def decode(kind: type[T], text: str) -> T:
    """The value that `encode` wrote.

    Raises:
        pydantic.ValidationError: the text is not one of that kind.
    """
    value: T = _adapter(kind).validate_json(text)
    return value
