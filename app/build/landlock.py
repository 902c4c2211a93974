"""Landlock: a process gives up all files but those it names. For this thread and those it starts later.

Source: Linux, Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from app.build.libc import PR_SET_NO_NEW_PRIVS, prctl, syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION = 1
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_OF_FILES = 1 << 1 | _READ_FILE | 1 << 14  # rights that a rule on a file can have: write, read, truncate
_EXECUTE = 1 << 0
# By version of the interface: every right on files that it knows.
_ALL_FS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL_FS_NEWEST = (1 << 16) - 1
_ALL_NET = 0b11  # since 4: bind and connect TCP
_ALL_SCOPES = 0b11  # since 6: abstract sockets and signals of processes outside


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def restrict(read: Iterable[Path], write: Iterable[Path]) -> None:
    """Leave only these files and folders, with all beneath them; nothing may be executed.

    Args:
        read: what is not there is left out.
        write: may be read, written, made and removed.

    Raises:
        OSError: this kernel has no Landlock, or it is switched off.
    """
    version = syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    rights = _ALL_FS.get(version, _ALL_FS_NEWEST)
    attributes = _Ruleset(rights, _ALL_NET if version >= 4 else 0, _ALL_SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8  # what this kernel's structure has
    ruleset = syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path in read:
            with suppress(FileNotFoundError, PermissionError):
                _allow(ruleset, path, rights & (_READ_FILE | _READ_DIR))
        for path in write:
            _allow(ruleset, path, rights & ~_EXECUTE)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(file).st_mode):
            rights &= _OF_FILES
        rule = _PathBeneath(rights, file)
        syscall(
            _ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_int(_PATH_BENEATH),
            ctypes.byref(rule),
            ctypes.c_uint32(0),
        )
    finally:
        os.close(file)
