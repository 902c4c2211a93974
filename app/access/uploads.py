"""How many uploads run at once: each holds a connection, a file and a share of the disk's speed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.domain.errors import TooManyUploads

RETRY_S = 5


class UploadSlots:
    """Slots of all clients together, and of each. Any thread may take one."""

    def __init__(self, total: int, per_client: int) -> None:
        self._total = total
        self._per_client = per_client
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @contextmanager
    def slot(self, client: str) -> Iterator[None]:
        """Hold a slot.

        Raises:
            TooManyUploads: none is free.
        """
        with self._lock:
            if self._held[client] >= self._per_client or self._held.total() >= self._total:
                raise TooManyUploads(
                    f"{self._held[client]} uploads of this client are under way, {self._held.total()} in all;"
                    f" {self._per_client} and {self._total} may be.",
                    hint="Send them one after another, or raise JETFORGE_MAX_UPLOADS.",
                    retry_after_s=RETRY_S,
                )
            self._held[client] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[client] -= 1
                self._held += Counter()  # forget clients that hold none
