"""Names of backends → Backend, each imported on first use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module

from app.backends.base import Backend
from app.domain.errors import BackendMissing

AUTO = "auto"  # the best backend that this device has


@dataclass(frozen=True)
class _Entry:
    """Where a backend is found. The module is named as text, so that importing this one loads no runtime."""

    name: str
    module: str
    attribute: str  # the class in it, made without arguments
    remedy: str  # how to get what it needs


_ENTRIES = (  # best first
    _Entry("tensorrt", "app.backends.tensorrt.backend", "TensorRT", "pip install tensorrt pycuda"),
    _Entry("onnxruntime", "app.backends.onnxruntime", "OnnxRuntime", "pip install onnxruntime"),
)

NAMES = tuple(entry.name for entry in _ENTRIES)


@cache
def backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        BackendMissing: no such backend, or its runtime is not installed here.
    """
    entry = next((entry for entry in _ENTRIES if entry.name == name), None)
    if entry is None:
        raise BackendMissing(
            f"There is no backend named {name[:80]!r}.", hint=f"Choose one of: {', '.join((AUTO, *NAMES))}."
        )
    try:
        made: Backend = getattr(import_module(entry.module), entry.attribute)()
    except ImportError as error:
        raise BackendMissing(
            f"The backend {name} cannot be used here: {error}.", hint=f"Install what it needs: {entry.remedy}"
        ) from error
    return made


def available() -> list[str]:
    """Names of the backends that work on this device, best first."""
    return [name for name in NAMES if _is_available(name)]


def chosen(name: str) -> Backend:
    """The backend of that name; for "auto" the best available one.

    Raises:
        BackendMissing: as for `backend`; for "auto", none is available.
    """
    if name != AUTO:
        return backend(name)
    found = next((name for name in NAMES if _is_available(name)), None)  # the rest stays unloaded: each costs memory
    if found is None:
        raise BackendMissing("No backend works on this device.", hint=f"Install one: {_ENTRIES[-1].remedy}")
    return backend(found)


def _is_available(name: str) -> bool:
    try:
        backend(name)
    except BackendMissing:
        return False
    return True
