"""What stored models tell, each asked once: a few at a time in children of this process, every answer kept in a file.

Files of the cache folder, not rows of the database: an answer can always be had again, depends on what this device has
installed, and is thinned out with whatever else builds keep.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from app.domain.builds import SourceModel
from app.domain.errors import BuildCrashed, BuildKilled, BuildTimedOut, ConfinementMissing, ExportFailed
from app.domain.jobs import Failure
from app.domain.model_facts import ModelFacts
from app.storage.codec import decode, encode

log = logging.getLogger(__name__)

AT_ONCE = 2  # so that one model that hangs does not hold up all others; each may take as much memory as an export
RETRY_S = 600.0  # after which a failure that may be the system's and not the model's is looked into again
_PASSING = {leaf.code for leaf in (BuildCrashed, BuildKilled, BuildTimedOut, ConfinementMissing, ExportFailed)}

Kill = Callable[[], None]
Inspect = Callable[[SourceModel, Callable[[Kill], None]], "ModelFacts | Failure"]


@dataclass(frozen=True)
class _Record:
    under: str
    facts: ModelFacts | None = None
    failure: Failure | None = None


class Inspections:
    """Asked from one event loop, which it never blocks."""

    def __init__(self, inspect: Inspect, folder: Path, under: Callable[[], str]) -> None:
        """Ask nothing yet.

        Args:
            inspect: reads a model in a child; hands over what ends that child at once.
            folder: of the answers; made when it is missing.
            under: tells what else an answer depends on: it is asked for again when this differs.
        """
        self._inspect = inspect
        self._folder = folder
        self._under = under
        self._threads = ThreadPoolExecutor(AT_ONCE, "inspection")
        self._asked: dict[str, asyncio.Future[ModelFacts | Failure | None]] = {}
        self._kills: dict[str, Kill] = {}
        self._is_stopped = False

    async def of(self, model: SourceModel, wait_s: float) -> ModelFacts | Failure | None:
        """What the model tells, or why a build of it would fail.

        Returns:
            None: it is still being read, or waits for its turn. Nobody has to wait for the answer to be kept.
        """
        kept = await asyncio.to_thread(self._kept, model.digest)
        if kept is not None:
            return kept
        asked = self._asked.get(model.digest) or self._start(model)
        await asyncio.wait({asked}, timeout=wait_s)
        return asked.result() if asked.done() and not asked.cancelled() else None

    def forget(self, digest: str) -> None:
        """Remove the answer about a model that is deleted, and its place in the queue."""
        asked = self._asked.get(digest)
        if asked is not None:
            asked.cancel()
        self._file(digest).unlink(missing_ok=True)

    def stop(self) -> None:
        """End all children; whoever waits is answered at once. Safe in a signal handler: it takes no lock."""
        self._is_stopped = True
        for kill in list(self._kills.values()):
            kill()

    def close(self) -> None:
        self.stop()
        self._threads.shutdown(cancel_futures=True)

    def _start(self, model: SourceModel) -> asyncio.Future[ModelFacts | Failure | None]:
        asked = asyncio.get_running_loop().run_in_executor(self._threads, self._answer, model)
        self._asked[model.digest] = asked
        asked.add_done_callback(lambda _: self._asked.pop(model.digest, None))
        return asked

    # --- on a thread of its own --------------------------------------------------------------------------------------

    def _answer(self, model: SourceModel) -> ModelFacts | Failure | None:
        if self._is_stopped:
            return None
        started = time.monotonic()
        try:
            answer = self._inspect(model, lambda kill: self._started(model.digest, kill))
        except OSError as error:
            log.error("model not inspected", extra={"model": model.digest, "reason": str(error)})
            return Failure(
                BuildCrashed.code,
                f"The model could not be read: {error.strerror or type(error).__name__}.",
                "Ask again later; the service's log has the details.",
            )
        finally:
            self._kills.pop(model.digest, None)
        if self._is_stopped:  # the child was killed: that says nothing about the model
            return None
        log.info("model inspected", extra={"model": model.digest, "seconds": round(time.monotonic() - started, 2)})
        self._keep(model.digest, answer)
        return answer

    def _started(self, digest: str, kill: Kill) -> None:
        self._kills[digest] = kill
        if self._is_stopped:
            kill()

    def _kept(self, digest: str) -> ModelFacts | Failure | None:
        path = self._file(digest)
        try:
            record, age_s = decode(_Record, path.read_text()), time.time() - path.stat().st_mtime
        except (OSError, UnicodeDecodeError, ValidationError):
            return None
        has_passed = record.failure is not None and record.failure.code in _PASSING and age_s > RETRY_S
        return None if record.under != self._under() or has_passed else record.facts or record.failure

    def _keep(self, digest: str, answer: ModelFacts | Failure) -> None:
        under = self._under()
        record = _Record(under, failure=answer) if isinstance(answer, Failure) else _Record(under, facts=answer)
        path = self._file(digest)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        with suppress(OSError):  # a full disk: the next one asks again
            self._folder.mkdir(parents=True, exist_ok=True)
            draft.write_text(encode(record))
            draft.replace(path)

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest.removeprefix('sha256:')}.json"
