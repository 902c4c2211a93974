"""What a build tells while it runs: a line in the job's history and one in its log."""

from __future__ import annotations

import logging
from datetime import datetime, timezone

from app.backends.base import Progress
from app.build.workdir import ProgressLine, WorkDir
from app.domain.jobs import EventKind, Stage

log = logging.getLogger(__name__)


class Report(Progress):
    def __init__(self, work: WorkDir) -> None:
        self._work = work
        self._stage: Stage | None = None
        self._warnings: list[str] = []

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings so far: they go into the engine's record."""
        return tuple(self._warnings)

    def stage(self, stage: Stage, text: str) -> None:
        self._stage = stage
        self._tell(EventKind.STAGE, text)

    def step(self, text: str) -> None:
        self._tell(EventKind.STEP, text)

    def warn(self, text: str) -> None:
        self._warnings.append(text)
        self._tell(EventKind.WARNING, text)

    def _tell(self, kind: EventKind, text: str) -> None:
        log.log(logging.WARNING if kind is EventKind.WARNING else logging.INFO, "%s", text)
        self._work.append_progress(ProgressLine(kind, self._stage, text, datetime.now(timezone.utc)))
