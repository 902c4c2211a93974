"""Token buckets: how often something may happen, by name."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

NAMES_MAX = 10_000  # beyond them the one least recently used is forgotten: memory is bounded, whoever knocks


class Buckets:
    """One bucket for each name; it fills again with time. Any thread may take."""

    def __init__(self, names_max: int = NAMES_MAX, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._names_max = names_max
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when there were so many

    def take(self, name: str, per_s: float, size: float) -> float:
        """Take a token.

        Args:
            per_s: tokens that come back each second.
            size: tokens of a full bucket, at least 1.

        Returns:
            0 when there was one, else the seconds until there is.
        """
        now = self._monotonic_s()
        with self._lock:
            tokens, at = self._levels.pop(name, (size, now))
            tokens = min(size, tokens + max(0.0, now - at) * per_s)
            wait_s = 0.0 if tokens >= 1 else (1 - tokens) / per_s
            self._levels[name] = (tokens if wait_s else tokens - 1, now)
            if len(self._levels) > self._names_max:
                self._levels.popitem(last=False)
        return wait_s
