"""Backoff: how long to wait before a process that has ended is started again."""

from __future__ import annotations

FIRST_S = 0.5
MOST_S = 30.0
STEADY_S = 30.0  # a process that lived so long was fine: the next start is quick again


class Backoff:
    """A pause that doubles for as long as what is started ends soon."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def after(self, lived_s: float) -> float:
        """The pause, in seconds, after a process that lived so long."""
        if lived_s > STEADY_S:
            self._next_s = FIRST_S
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, MOST_S)
        return pause_s
