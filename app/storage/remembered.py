"""Which engines were warm: a small file that outlives the process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.storage.codec import decode, encode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remembered:
    """One engine that was warm."""

    refs: tuple[str, ...]  # "name:version" of every name under which it was used
    pins: tuple[str, ...]  # those of them that requests pinned, not the setting
    keep_alive_s: float | None  # its own; None: the setting's


@dataclass(frozen=True)
class _File:
    engines: tuple[Remembered, ...]


class WarmFile:
    """The file; what cannot be read counts as empty, and what cannot be written is told once in the log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.engines: tuple[Remembered, ...] = ()  # as read or written last
        self._is_told = False

    def read(self) -> list[Remembered]:
        """What was written last, in its order."""
        try:
            self.engines = decode(_File, self._path.read_text()).engines
        except FileNotFoundError:
            self.engines = ()
        except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
            log.warning("the list of warm engines cannot be read", extra={"error": type(error).__name__})
        return list(self.engines)

    def write(self, engines: Sequence[Remembered]) -> None:
        """Replace the file whole."""
        draft = self._path.with_suffix(".draft")
        try:
            draft.write_text(encode(_File(tuple(engines))))
            draft.replace(self._path)
            self.engines = tuple(engines)
        except OSError as error:
            if not self._is_told:
                log.warning("the list of warm engines cannot be written", extra={"error": str(error)})
            self._is_told = True
