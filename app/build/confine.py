"""What a process that opens a stranger's file gives up, so that the file can compute and nothing else.

TorchScript is a program and a .pt2 file holds pickles: loading one may run whatever its author liked. The process
that loads it therefore confines itself in two halves: `enter` before anything is imported that starts threads, and
`seal` when all imports are done. Each protection is tried on its own: kernels and containers differ in what they let
a process do to itself. What could not be had is returned, in words, for the log and for the setting that requires it.
"""

from __future__ import annotations

import os
import resource
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import app
from app.build import landlock, libc, seccomp

_NEW_USER, _NEW_NETWORK, _NEW_IPC, _NEW_HOST_NAME = 0x10000000, 0x40000000, 0x08000000, 0x04000000
_OWN = _NEW_NETWORK | _NEW_IPC | _NEW_HOST_NAME
_SYSTEM_FILES = (  # that Python, torch and their libraries read
    *("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu", "/sys/bus/pci/devices"),
    *("/dev/null", "/dev/zero", "/dev/urandom"),
)


@dataclass(frozen=True)
class Limits:
    """Of the process itself; passing one ends it or fails its call."""

    memory_bytes: int  # of address space
    cpu_s: int  # of all threads together
    written_bytes: int  # largest file


def enter(limits: Limits, read: tuple[Path, ...], scratch: Path) -> list[str]:
    """First half: no privileges, no network, no file of the system but what programs need, no more than the limits.

    Args:
        read: files and folders to be readable besides Python and its packages.
        scratch: the only folder that may be written to; becomes the working folder.

    Returns:
        What this system does not let a process give up.
    """
    os.chdir(scratch)
    steps: dict[str, Callable[[], None]] = {
        "limits of memory, time and size": lambda: _limit(limits),
        "a network of its own": _leave_network,
        "no privileges": _give_up_privileges,
        "no files but its own (Landlock)": lambda: landlock.restrict((*_program_files(), *read), (scratch,)),
    }
    return [name for name, step in steps.items() if not _done(step)]


def seal() -> list[str]:
    """Second half, once everything is imported: see `seccomp.refuse_all_but_computing`. Returns as `enter` does."""
    name = "no processes, sockets or changed files (seccomp)"
    return [] if _done(seccomp.refuse_all_but_computing) else [name]


def _done(step: Callable[[], None]) -> bool:
    try:
        step()
    except (OSError, ValueError, AttributeError):  # refused, not in this libc, or not Linux
        return False
    return True


def _limit(limits: Limits) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, limits.written_bytes),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _leave_network() -> None:
    try:
        libc.unshare(_OWN)
    except PermissionError:  # an ordinary user may, where the kernel lets it have a user namespace
        libc.unshare(_NEW_USER | _OWN)


def _give_up_privileges() -> None:
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.give_up_capabilities()


def _program_files() -> Iterator[Path]:
    """Where Python, its packages and the libraries of both are; this package, but not the folder around it."""
    yield Path(app.__file__).parent
    yield from map(Path, _SYSTEM_FILES)
    for key in ("stdlib", "platstdlib", "purelib", "platlib"):
        yield Path(sysconfig.get_path(key))
    yield Path(sys.base_prefix) / "lib"
    yield Path(sys.prefix) / "pyvenv.cfg"
    yield from (Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages"))
    for entry in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        yield Path(entry)
