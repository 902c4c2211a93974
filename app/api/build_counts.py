"""BuildCounts: how builds ended and how long their stages took, from the histories that workers write."""

from __future__ import annotations

import threading
from datetime import datetime

from app.domain.jobs import EventKind, JobState, Stage
from app.serving.distribution import Distribution
from app.storage.feed import FeedLine, JobFeed

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
RESULTS = tuple(state for state in JobState if state.is_final)
_LINES_A_LOOK = 1000


class BuildCounts:
    """Counts from the start of this process on. It reads the database when it is asked, and then only what is new."""

    def __init__(self, feed: JobFeed) -> None:
        self.ended = dict.fromkeys(RESULTS, 0)
        self.stage_seconds = {stage: Distribution(SECONDS) for stage in Stage}
        self._feed = feed
        self._lock = threading.Lock()
        self._seq = feed.last_seq()
        self._entered: dict[str, tuple[Stage, datetime]] = {}  # by job: the stage that it is in, and since when

    def catch_up(self) -> None:
        """Count what has happened since the last call. Safe in several threads."""
        with self._lock:
            while lines := self._feed.after(self._seq, _LINES_A_LOOK):
                for line in lines:
                    self._count(line)
                self._seq = lines[-1].event.seq

    def _count(self, line: FeedLine) -> None:
        event = line.event
        if event.kind not in (EventKind.STATE, EventKind.STAGE):
            return
        if entered := self._entered.pop(event.job, None):
            stage, since = entered
            self.stage_seconds[stage].add(max(0.0, (event.at - since).total_seconds()))  # the clock may be set back
        if event.kind is EventKind.STAGE and event.stage is not None:
            self._entered[event.job] = event.stage, event.at
        elif event.state in self.ended:
            self.ended[event.state] += 1
