"""A child process with a group of its own: started, watched, ended with all its descendants, its last words read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

import app

POLL_S = 0.1
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


def started(module: str, root: Path, log: Path) -> subprocess.Popen[bytes]:
    """`python -m module ROOT --parent PID`, at work in the folder; what it prints is appended to the log."""
    command = [sys.executable, "-X", "faulthandler", "-m", module, str(root), "--parent", str(os.getpid())]
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=root,
            env={**kept, "PYTHONPATH": _search_path(), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )


def has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child has ended. It is not reaped: until then its process group cannot become another's."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def ask_to_end(child: subprocess.Popen[bytes]) -> None:
    os.killpg(child.pid, signal.SIGTERM)
    end = time.monotonic() + _GRACE_S
    while not has_ended(child) and time.monotonic() < end:
        time.sleep(POLL_S / 4)


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and all its descendants, and wait until they are gone."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    end = time.monotonic() + _REAP_S
    with suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(child.pid, 0)
            time.sleep(POLL_S / 4)


def was_killed(status: int) -> bool:
    """Whether the status is that of signal 9, which most often is the system's way out of a want of memory."""
    return status in (-signal.SIGKILL, 128 + signal.SIGKILL)


def how_it_ended(status: int) -> str:
    """As in `by signal SIGSEGV`, or `with status 1 and without a result`."""
    return f"by signal {_signal_name(-status)}" if status < 0 else f"with status {status} and without a result"


def last_words(log: Path, root: Path) -> str:
    """The last lines of the log, or the first of a crash report at its end; without paths of this machine."""
    with suppress(FileNotFoundError):
        text = log.read_bytes()[-16384:].decode(errors="replace")
        for folder in (root, sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"], _CODE_ROOT):
            text = text.replace(f"{folder}/", "")
        crash = text.rfind("Fatal Python error")  # as faulthandler begins; its innermost frames come first
        return "\n".join(text[crash:].splitlines()[:_LOG_LINES] if crash >= 0 else text.splitlines()[-_LOG_LINES:])
    return ""


def _search_path() -> str:
    """This code before whatever else the parent's own path adds, as where TensorRT's module lies elsewhere."""
    return os.pathsep.join(filter(None, (str(_CODE_ROOT), os.environ.get("PYTHONPATH", ""))))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
