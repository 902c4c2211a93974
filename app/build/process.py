"""What a build process arranges with the system about its own end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None, number: int = signal.SIGKILL) -> None:
    """Have the system send this process a signal as soon as the thread that started it ends (Linux only).

    Args:
        parent: its id, if the caller knows it: a parent that is gone already sends the signal at once.
        number: the signal; SIGTERM for a process that has something to put back.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def be_first_to_go() -> None:
    """Have the system choose this process first when memory runs out, and not the service."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
