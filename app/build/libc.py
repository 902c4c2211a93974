"""System calls that Python's standard library does not have (Linux only)."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)
IS_LINUX = sys.platform.startswith("linux")
MACHINE = platform.machine()  # x86_64, aarch64

PR_SET_NO_NEW_PRIVS = 38


def syscall(number: int, *arguments: object) -> int:
    """Call the kernel.

    Raises:
        OSError: it refused, or there is no such call here.
    """
    return _checked(_LIBC.syscall(ctypes.c_long(number), *arguments))


def prctl(option: int, value: int = 0) -> None:
    _checked(_LIBC.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def unshare(flags: int) -> None:
    _checked(_LIBC.unshare(flags))


def give_up_capabilities() -> None:
    """Leave this process without any privilege beyond those of its user."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    _checked(_LIBC.capset(header, (ctypes.c_uint32 * 6)()))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
