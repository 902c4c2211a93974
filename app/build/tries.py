"""A build, and the same again with less memory after the system has ended it for want of that.

What the engine is asked for stays as it is; what was lowered goes into its warnings, the job's history and the log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone

from app.build import launch
from app.build.workdir import BuildSpec, ProgressLine, WorkDir
from app.domain.builds import BuildOptions, BuiltEngine
from app.domain.errors import BuildKilled, BuildOutOfMemory
from app.domain.jobs import EventKind, Failure, Stage

Outcome = BuiltEngine | Failure | launch.Stopped

_FOR_MEMORY = (BuildKilled.code, BuildOutOfMemory.code)
_LOWERED_IN = (Stage.COMPILE, Stage.VERIFY)  # elsewhere the memory is the model's, whatever the options


def run(
    work: WorkDir,
    spec: BuildSpec,
    timeout_s: float,
    lighter: Sequence[BuildOptions],
    on_progress: Callable[[ProgressLine], None],
    should_stop: Callable[[], bool],
) -> Outcome:
    """Build as `launch.run` does; while a build ends for want of memory, again with the next of the lighter options.

    Args:
        timeout_s: of each try.
        lighter: the options with less and less memory, as the backend has them; empty where it has none.
    """
    tries = _Tries(work, on_progress)
    outcome = launch.run(work, spec, timeout_s, tries.tell, should_stop)
    for options in lighter:
        if not tries.may_go_on(outcome):
            break
        tries.lower(spec.options, options)
        outcome = launch.run(work, replace(spec, options=options), timeout_s, tries.tell, should_stop)
    return tries.explained(outcome)


class _Tries:
    def __init__(self, work: WorkDir, on_progress: Callable[[ProgressLine], None]) -> None:
        self._work = work
        self._on_progress = on_progress
        self._stage: Stage | None = None  # of the latest try
        self._lowered: list[str] = []  # what each further try was built with

    def tell(self, line: ProgressLine) -> None:
        self._stage = line.stage
        self._on_progress(line)

    def may_go_on(self, outcome: Outcome) -> bool:
        return isinstance(outcome, Failure) and outcome.code in _FOR_MEMORY and self._stage in _LOWERED_IN

    def lower(self, asked: BuildOptions, options: BuildOptions) -> None:
        """Say what the next try is built with."""
        self._lowered.append(changes(asked, options))
        text = f"The build was ended for want of memory; it is tried again with {self._lowered[-1]}."
        self._on_progress(ProgressLine(EventKind.WARNING, self._stage, text, datetime.now(timezone.utc)))
        with self._work.log.open("a") as lines:
            lines.write(f"# {text}\n")

    def explained(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, BuiltEngine) and self._lowered:
            told = f"Built with {self._lowered[-1]}: with more, the build was ended for want of memory."
            return replace(outcome, warnings=(told, *outcome.warnings))
        if not self.may_go_on(outcome):
            return outcome
        assert isinstance(outcome, Failure)
        if self._lowered:
            return replace(outcome, message=f"{outcome.message} It was also tried with {'; '.join(self._lowered)}.")
        return replace(outcome, message=f"{outcome.message} This backend has no option that takes less.")


def changes(asked: BuildOptions, options: BuildOptions) -> str:
    """What differs, as in `workspace_mib=512, optimization_level=1`."""
    before = asdict(asked)
    return ", ".join(f"{name}={value}" for name, value in asdict(options).items() if value != before[name])
