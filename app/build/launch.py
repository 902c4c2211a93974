"""The parent's side of a build: start the child, watch it, and end it with all its descendants.

started ──► lines from progress.jsonl, until
            ├─ it ended: result.json → BuiltEngine, else Failure (failure.json, or its exit status)
            ├─ its time is up → Failure
            └─ the caller wants it to stop → Stopped
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import app
from app.build.workdir import BuildSpec, ProgressLine, ProgressReader, WorkDir
from app.domain.builds import BuiltEngine
from app.domain.errors import BuildCrashed, BuildKilled, BuildTimedOut
from app.domain.jobs import Failure, Stage

_POLL_S = 0.1
_GRACE_S = 2.0  # between the request to end and the kill
_REAP_S = 5.0  # for killed descendants to vanish
_LOG_LINES = 20
_KEPT_ENVIRONMENT = (
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "PYTHONHOME",
)
_CODE_ROOT = Path(app.__file__).parents[1]


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
    child = _start(work)
    try:
        while not _has_ended(child):
            watch.tell_news()
            if should_stop():
                _ask_to_end(child)
                return Stopped()
            if time.monotonic() > deadline:
                return _timed_out(timeout_s, watch.stage)
            time.sleep(_POLL_S)
        watch.tell_news()
    finally:
        _end_group(child)
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


def _start(work: WorkDir) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-X", "faulthandler", "-m", "app.build", str(work.root), "--parent", str(os.getpid())]
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    with work.log.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=work.root,
            env={**kept, "PYTHONPATH": _search_path(), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )


def _search_path() -> str:
    """This code before whatever else the parent's own path adds, as where TensorRT's module lies elsewhere."""
    return os.pathsep.join(filter(None, (str(_CODE_ROOT), os.environ.get("PYTHONPATH", ""))))


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child has ended. It is not reaped: until then its process group cannot become another's."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _ask_to_end(child: subprocess.Popen[bytes]) -> None:
    os.killpg(child.pid, signal.SIGTERM)
    end = time.monotonic() + _GRACE_S
    while not _has_ended(child) and time.monotonic() < end:
        time.sleep(_POLL_S / 4)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and all its descendants, and wait until they are gone."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    end = time.monotonic() + _REAP_S
    with suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(child.pid, 0)
            time.sleep(_POLL_S / 4)


def _timed_out(timeout_s: float, stage: Stage | None) -> Failure:
    return Failure(
        BuildTimedOut.code,
        f"The build was ended at its limit of {timeout_s:g} s, {_in_stage(stage)}.",
        "Allow more with timeout_s; a model that never comes to an end has to be mended first.",
    )


def _unexplained_end(status: int, stage: Stage | None, work: WorkDir) -> Failure:
    if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return Failure(
            BuildKilled.code,
            f"The build was ended by the system {_in_stage(stage)}, most likely for want of memory.",
            "Lower the largest batch (max_shapes), unload engines and stop other programs, or add swap.",
            _log_end(work),
        )
    how = f"by signal {_signal_name(-status)}" if status < 0 else f"with status {status} and without a result"
    return Failure(
        BuildCrashed.code,
        f"The build process ended {how}, {_in_stage(stage)}.",
        "Read the job's log. A crash while simplifying or compiling may go away with simplify=false.",
        _log_end(work),
    )


def _in_stage(stage: Stage | None) -> str:
    return f"in the stage {stage.value}" if stage else "before its first stage"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _log_end(work: WorkDir) -> str:
    """The last lines of the log, or the first of a crash report at its end; without paths of this machine."""
    with suppress(FileNotFoundError):
        text = work.log.read_bytes()[-16384:].decode(errors="replace")
        for root in (work.root, sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"], _CODE_ROOT):
            text = text.replace(f"{root}/", "")
        crash = text.rfind("Fatal Python error")  # as faulthandler begins; its innermost frames come first
        return "\n".join(text[crash:].splitlines()[:_LOG_LINES] if crash >= 0 else text.splitlines()[-_LOG_LINES:])
    return ""
