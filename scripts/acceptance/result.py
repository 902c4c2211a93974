"""What a trial found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    found: str  # for a person


@dataclass
class Result:
    """One engine. What was not reached, or is not told here, is missing from `figures` and `details`."""

    network: str
    precision: str
    ref: str | None = None  # of the engine; None: it was not built
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)  # those that figures.py compares, and more
    details: dict[str, Any] = field(default_factory=dict)  # the engine's own record

    @property
    def name(self) -> str:
        return f"{self.network} {self.precision}"

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    def judge(self, name: str, problems: Sequence[str], fine: str) -> None:
        """Note a check: passed when there is no problem."""
        self.checks.append(Check(name, not problems, "; ".join(problems) or fine))

    def note(self, **figures: float | None) -> None:
        """Keep what is a number: JSON has no NaN and no infinity."""
        known = {name: value for name, value in figures.items() if value is not None and isfinite(value)}
        self.figures.update({name: round(value, 6) for name, value in known.items()})
