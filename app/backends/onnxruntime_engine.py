"""An engine of ONNX Runtime in memory: its sessions, and the contexts that share them."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from app import heap
from app.backends.base import Context, LoadedEngine
from app.backends.onnxruntime_session import words
from app.domain.errors import ExecutionFailed
from app.domain.tensors import Signature, Tensors


class Sessions:
    """One file's sessions by their number of threads, each for as long as it has contexts.

    A session has one pool of threads, and its contexts share it, since the runtime's `run` may be called from several
    threads. A lone request is fastest with a thread on every processor, many requests with one thread each.
    """

    def __init__(self, load: Callable[[int], Any], file_bytes: int, threads: int, session: Any) -> None:
        """
        Args:
            session: the first, of so many threads.
        """
        self.file_bytes = file_bytes
        self._load = load
        self._lock = threading.Lock()
        self._sessions: dict[int, Any] = {threads: session}
        self._users: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._sessions)

    def taken(self, threads: int) -> Any:
        """A session of so many threads; those that nobody uses are given up for it."""
        with self._lock:
            if threads not in self._sessions:
                self._sessions[threads] = self._load(threads)
            self._users[threads] += 1
            self._drop_unused()
            return self._sessions[threads]

    def give(self, threads: int) -> None:
        """A context of so many threads has ended."""
        with self._lock:
            self._users[threads] -= 1
            if any(self._users.values()):
                self._drop_unused()

    def clear(self) -> None:
        self._sessions.clear()

    def _drop_unused(self) -> None:
        unused = [threads for threads in self._sessions if not self._users[threads]]
        for threads in unused:
            del self._sessions[threads]
        if unused:
            heap.trim()


class OnnxRuntimeEngine(LoadedEngine):
    is_on_cpu = True

    def __init__(
        self,
        sessions: Sessions,
        threads_of: Callable[[int | None], int],
        home: Callable[[int], int | None],
        signature: Signature,
    ) -> None:
        self._sessions = sessions
        self._threads_of = threads_of
        self._home = home
        self._signature = signature

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def parallel_runs(self) -> int:
        return len(os.sched_getaffinity(0))

    @property
    def device_bytes(self) -> int:
        """An estimate, as the runtime does not tell: the file, and for each session the file again and 4 MiB.

        Measured growth of resident memory after runs of 1 and of 8 images with one session: ResNet-18 (file 44 MiB)
        69 and 131 MiB, ResNet-50 (file 97 MiB) 133 and 238 MiB.
        """
        sessions = max(1, len(self._sessions))
        return (1 + sessions) * self._sessions.file_bytes + sessions * 4 * 2**20

    def open_context(self, at_once: int | None = None) -> Context:
        threads = self._threads_of(at_once)
        session, give = self._sessions.taken(threads), partial(self._sessions.give, threads)
        return _Context(session, self._signature, give, self._home(threads))

    def close(self) -> None:
        self._sessions.clear()
        heap.trim()


class _Context(Context):
    def __init__(self, session: Any, signature: Signature, closed: Callable[[], None], home: int | None) -> None:
        """
        Args:
            home: the processor that the calling thread is bound to until the context closes; None: it stays free.
        """
        self._session: Any = session
        self._outputs = [spec.name for spec in signature.outputs]
        self._closed = closed
        self._allowed = os.sched_getaffinity(0) if home is not None else None
        if home is not None:
            _bind({home})

    def run(self, inputs: Tensors) -> Tensors:
        try:
            # The arrays that come back are the caller's own: the runtime allocates them for each run.
            results = self._session.run(self._outputs, inputs)
        except Exception as error:  # the runtime's exceptions have no base of their own
            raise ExecutionFailed(
                f"ONNX Runtime failed: {words(error)}",
                hint="Check the shapes and values of the inputs; if they are as in training, build the engine again.",
            ) from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        self._session = None
        if self._allowed is not None:
            _bind(self._allowed)
        self._closed()


def _bind(processors: set[int]) -> None:
    with suppress(OSError):  # they have been switched off since, and the system has found others
        os.sched_setaffinity(0, processors)
