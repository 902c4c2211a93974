"""The C library's heap: what it keeps of freed memory, and when it gives it back. Only glibc can be told."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

KEPT_BYTES = 256 << 20  # of free memory, while there is traffic
_MAPPED_BYTES = 32 << 20  # from so many on an allocation is the system's own, and given back at once; glibc's limit
CALM_BYTES = 1 << 20  # between two looks: status polls and the like
CALM_LOOKS = 3
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


def prepare() -> None:
    """Have one heap for all threads, which keeps what bodies leave free, up to a bound. Before threads are started.

    Measured with bodies of 602 KB: 8,598 requests a second became 11,730, as the next body finds its pages in place;
    with bodies of 9.6 and 19 MB from eight clients, 256 MiB instead of 64: 1.26 and 1.08 as many.
    With a heap for each thread, every one could keep so much: a server that had unloaded MobileNetV2 was left with 220
    to 390 MiB, other ones each time, and is with 154 now. Requests a second stayed what they were.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def trim() -> None:
    """Hand freed pages back to the system.

    Measured: after ResNet-50 was closed, 120 of its 208 MiB stayed with the process until glibc was told.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class Calm:
    """Trims the heap when little is received any more. Told of all that is received, and asked to look now and then."""

    def __init__(self, trim: Callable[[], None] = trim) -> None:
        self.received_bytes = 0
        self._trim = trim
        self._seen_bytes = 0  # at the last look
        self._is_due = False
        self._calm_looks = 0

    def look(self) -> None:
        """Trim, if it has been calm for some looks, and was not before."""
        come_bytes, self._seen_bytes = self.received_bytes - self._seen_bytes, self.received_bytes
        if come_bytes > CALM_BYTES:
            self._is_due, self._calm_looks = True, 0
            return
        self._calm_looks += 1
        if self._is_due and self._calm_looks == CALM_LOOKS:
            self._is_due = False
            self._trim()
