"""The parent's side of a build: start the child, watch it, and end it with all its descendants.

started ──► lines from progress.jsonl, until
            ├─ it ended: result.json → BuiltEngine, else Failure (failure.json, or its exit status)
            ├─ its time is up → Failure
            └─ the caller wants it to stop → Stopped
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from app.build.child import POLL_S, ask_to_end, end_group, has_ended, how_it_ended, last_words, started, was_killed
from app.build.workdir import BuildSpec, ProgressLine, ProgressReader, WorkDir
from app.domain.builds import BuiltEngine
from app.domain.errors import BuildCrashed, BuildKilled, BuildTimedOut
from app.domain.jobs import Failure, Stage


@dataclass(frozen=True)
class Stopped:
    """The caller asked for the end, and it came."""


def run(
    work: WorkDir,
    spec: BuildSpec,
    timeout_s: float,
    on_progress: Callable[[ProgressLine], None],
    should_stop: Callable[[], bool],
) -> BuiltEngine | Failure | Stopped:
    """Build in a child process and wait for its end. No descendant of it outlives this call.

    Args:
        work: holds the model; what an earlier attempt left in it is removed.
        on_progress: gets each line once, in order; called from this thread.
        should_stop: asked several times a second.

    Returns:
        The engine, whose file is then `work.engine`; or why there is none.
    """
    work.clear()
    work.write_spec(spec)
    watch = _Watch(ProgressReader(work), on_progress)
    deadline = time.monotonic() + timeout_s
    child = started("app.build", work.root, work.log)
    try:
        while not has_ended(child):
            watch.tell_news()
            if should_stop():
                ask_to_end(child)
                return Stopped()
            if time.monotonic() > deadline:
                return _timed_out(timeout_s, watch.stage)
            time.sleep(POLL_S)
        watch.tell_news()
    finally:
        end_group(child)
    return work.read_result() or work.read_failure() or _unexplained_end(child.returncode, watch.stage, work)


class _Watch:
    def __init__(self, reader: ProgressReader, on_progress: Callable[[ProgressLine], None]) -> None:
        self._reader = reader
        self._on_progress = on_progress
        self.stage: Stage | None = None  # the latest

    def tell_news(self) -> None:
        for line in self._reader.new_lines():
            self.stage = line.stage
            self._on_progress(line)


def _timed_out(timeout_s: float, stage: Stage | None) -> Failure:
    return Failure(
        BuildTimedOut.code,
        f"The build was ended at its limit of {timeout_s:g} s, {_in_stage(stage)}.",
        "Allow more with timeout_s; a model that never comes to an end has to be mended first.",
    )


def _unexplained_end(status: int, stage: Stage | None, work: WorkDir) -> Failure:
    if was_killed(status):
        return Failure(
            BuildKilled.code,
            f"The build was ended by the system {_in_stage(stage)}, most likely for want of memory.",
            "Lower the largest batch (max_shapes), unload engines and stop other programs, or add swap.",
            last_words(work.log, work.root),
        )
    return Failure(
        BuildCrashed.code,
        f"The build process ended {how_it_ended(status)}, {_in_stage(stage)}.",
        "Read the job's log. A crash while simplifying or compiling may go away with simplify=false.",
        last_words(work.log, work.root),
    )


def _in_stage(stage: Stage | None) -> str:
    return f"in the stage {stage.value}" if stage else "before its first stage"
