"""What TensorRT tells while it works: its log, and the phases of a build."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

from app.backends.base import Progress

log = logging.getLogger(__name__)

_KEPT = 200  # lines: the cause of a failure is among the last ones
_PAUSE_S = 2.0  # between two steps told of one build


class Lines:
    """The last errors and warnings, by the thread that TensorRT spoke on."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, bool, str]] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()

    def add(self, text: str, *, is_error: bool) -> None:
        with self._lock:
            self._lines.append((threading.get_ident(), is_error, text))

    def taken(self, *, every_thread: bool = False) -> list[str]:
        """What was said since the last time, errors first; on this thread, or on all of them."""
        here = threading.get_ident()
        with self._lock:
            mine = [line for line in self._lines if every_thread or line[0] == here]
            kept = [line for line in self._lines if line not in mine]
            self._lines.clear()
            self._lines.extend(kept)
        return [text for _, is_error, text in sorted(mine, key=lambda line: not line[1])]


def logger_into(trt: Any, lines: Lines, info_level: int = logging.DEBUG) -> Any:
    """A TensorRT logger that collects what matters and forwards the rest; may be called from any thread.

    Args:
        info_level: at which TensorRT's own INFO lines are logged: many, and of use in a build's log only.
    """
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: info_level,
    }
    base: Any = trt.ILogger

    class Forwarding(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            level = levels.get(severity)
            if level is None or _is_noise(msg):  # verbose, or of no use to anybody
                return
            log.log(level, "TensorRT: %s", msg)
            if level >= logging.WARNING:
                lines.add(msg, is_error=level >= logging.ERROR)

    return Forwarding()


def _is_noise(text: str) -> bool:
    """8.5 warns, for every context of every engine, that a tensor's name stands for its first profile: it does not
    matter here, as all profiles are alike."""
    return text.startswith("ICudaEngine::getProfileDimensions: bindingIndex")


class Phases:
    """Turns the builder's phases into lines of the job's history: never percentages, as phases cover a small and
    changing part of a build's time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._steps: dict[str, int] = {}  # of each running phase
        self._told_at = 0.0
        self._is_cancelled = False

    def cancel(self) -> None:
        """Let the builder stop at its next step."""
        self._is_cancelled = True

    def started(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._steps[name] = steps
            if parent is None:
                self._tell(f"TensorRT: {name}, {steps} steps")
            else:
                self._tell_rarely(f"TensorRT: {name}, {steps} steps, in {parent}")

    def advanced(self, name: str, step: int) -> bool:
        """Whether the build goes on."""
        with self._lock:
            self._tell_rarely(f"TensorRT: {name}, step {step + 1} of {self._steps.get(name, 0)}")
            return not self._is_cancelled

    def finished(self, name: str) -> None:
        with self._lock:
            self._steps.pop(name, None)

    def _tell_rarely(self, text: str) -> None:
        if time.monotonic() - self._told_at >= _PAUSE_S:
            self._tell(text)

    def _tell(self, text: str) -> None:
        self._told_at = time.monotonic()
        self._progress.step(text)


def monitor_into(trt: Any, phases: Phases) -> Any | None:
    """A monitor for the builder; None in versions that have none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.started(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.advanced(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            phases.finished(phase_name)

    return Monitor()
