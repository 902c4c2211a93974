"""Seccomp: a process gives up system calls that computing does not need. For all its threads.

Source: Linux, Documentation/userspace-api/seccomp_filter.rst; numbers from arch/x86/entry/syscalls/syscall_64.tbl and
include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from app.build.libc import MACHINE, PR_SET_NO_NEW_PRIVS, prctl, syscall


@dataclass(frozen=True)
class _Calls:
    """Numbers of one architecture."""

    architecture: int  # AUDIT_ARCH_…
    seccomp: int
    clone: int
    openat: int
    open: int | None  # only x86_64 has it
    signals: tuple[int, ...]  # kill, tgkill: allowed on this process
    prlimit64: int  # likewise; 0 is this process
    refused: tuple[int, ...]
    changing_files: tuple[int, ...]


_EVERYWHERE = (
    *(424, 434, 438),  # pidfd_send_signal, pidfd_open, pidfd_getfd
    *(425, 426, 427),  # io_uring_setup, _enter, _register: they open files past every filter
    *(428, 429, 430, 431, 432, 433, 442),  # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr
    440,  # process_madvise
)
_UNKNOWN_EVERYWHERE = (435, 437)  # clone3, openat2: their arguments lie in memory; callers fall back to clone, openat

_TABLE = {
    "x86_64": _Calls(
        architecture=0xC000003E,
        seccomp=317,
        clone=56,
        openat=257,
        open=2,
        signals=(62, 234),
        prlimit64=302,
        refused=(
            *(57, 58, 59, 322),  # fork, vfork, execve, execveat
            *(200, 129, 297),  # tkill, rt_sigqueueinfo, rt_tgsigqueueinfo
            *(101, 310, 311),  # ptrace, process_vm_readv, process_vm_writev
            *(41, 53),  # socket, socketpair
            *(272, 308, 165, 166, 155, 161),  # unshare, setns, mount, umount2, pivot_root, chroot
            *(321, 298, 323),  # bpf, perf_event_open, userfaultfd
            *(248, 249, 250),  # add_key, request_key, keyctl
            *(303, 304),  # name_to_handle_at, open_by_handle_at
            *(29, 64, 68, 240),  # shmget, semget, msgget, mq_open
        ),
        changing_files=(
            *(85, 76, 82, 264, 316),  # creat, truncate, rename, renameat, renameat2
            *(87, 263, 84, 83, 258),  # unlink, unlinkat, rmdir, mkdir, mkdirat
            *(86, 265, 88, 266, 133, 259),  # link, linkat, symlink, symlinkat, mknod, mknodat
            *(90, 91, 268, 452, 92, 93, 94, 260),  # chmod, fchmod, fchmodat, fchmodat2, chown, fchown, lchown, fchownat
            *(132, 235, 261, 280),  # utime, utimes, futimesat, utimensat
            *(188, 189, 190, 197, 198, 199),  # setxattr, lsetxattr, fsetxattr, removexattr, l…, f…
        ),
    ),
    "aarch64": _Calls(
        architecture=0xC00000B7,
        seccomp=277,
        clone=220,
        openat=56,
        open=None,
        signals=(129, 131),
        prlimit64=261,
        refused=(
            *(221, 281),
            *(130, 138, 240),
            *(117, 270, 271),
            *(198, 199),
            *(97, 268, 40, 39, 41, 51),
            *(280, 241, 282),
            *(217, 218, 219),
            *(264, 265),
            *(194, 190, 186, 180),
        ),
        changing_files=(
            *(45, 38, 276),
            *(35, 34),
            *(37, 36, 33),
            *(52, 53, 452, 54, 55),
            88,
            *(5, 6, 7, 14, 15, 16),
        ),
    ),
}
_X32 = 0x40000000  # bit of the numbers of x86_64's other interface

_SET_MODE_FILTER = 1
_ALL_THREADS = 1  # SECCOMP_FILTER_FLAG_TSYNC
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD = 0x10000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse_all_but_computing() -> None:
    """No process may be started, signalled or looked into, no socket made, no file opened for writing or changed.

    Threads may be started; files may be opened for reading; what is open stays usable.

    Raises:
        OSError: this kernel or architecture has no such filter.
    """
    code = instructions(MACHINE, os.getpid())
    program = _Program(len(code) // 8, code)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    number = _TABLE[MACHINE].seccomp
    syscall(number, ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(_ALL_THREADS), ctypes.byref(program))


def instructions(machine: str, pid: int) -> bytes:
    """The filter for a process: instructions of classic BPF, 8 bytes each.

    Raises:
        OSError: the system calls of such a machine are not known here.
    """
    calls = _TABLE.get(machine)
    if calls is None:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    return b"".join(_filter(calls, pid))


def _filter(calls: _Calls, pid: int) -> Iterator[bytes]:
    """Every test skips at most a few instructions: jumps hold one byte."""
    yield _step(_LOAD, _ARCHITECTURE)
    yield _step(_EQUAL, calls.architecture, skip_if_true=1)
    yield _refusal(errno.EPERM)
    yield _step(_LOAD, _NUMBER)
    yield _step(_AT_LEAST, _X32, skip_if_false=1)
    yield _refusal(errno.EPERM)
    yield from _unless(calls.clone, _step(_ANY_BIT, _CLONE_THREAD, skip_if_true=1), argument=0)
    for number in calls.signals:
        yield from _unless(number, _step(_EQUAL, pid, skip_if_true=1), argument=0)
    own, this = _step(_EQUAL, pid, skip_if_true=2), _step(_EQUAL, 0, skip_if_true=1)
    yield from _unless(calls.prlimit64, own, this, argument=0)
    reading = _step(_ANY_BIT, _WRITING, skip_if_false=1)  # no bit of writing is set: the refusal is skipped
    yield from _unless(calls.openat, reading, argument=2, number_of_error=errno.EACCES)
    if calls.open is not None:
        yield from _unless(calls.open, reading, argument=1, number_of_error=errno.EACCES)
    for number in (*calls.refused, *_EVERYWHERE):
        yield from _refused(number, errno.EPERM)
    for number in calls.changing_files:
        yield from _refused(number, errno.EACCES)
    for number in _UNKNOWN_EVERYWHERE:
        yield from _refused(number, errno.ENOSYS)
    yield _step(_RETURN, _ALLOW)


def _refused(number: int, number_of_error: int) -> Iterator[bytes]:
    yield _step(_EQUAL, number, skip_if_false=1)
    yield _refusal(number_of_error)


def _unless(number: int, *tests: bytes, argument: int, number_of_error: int = errno.EPERM) -> Iterator[bytes]:
    """Refuse the call unless one of the tests of its argument skips the refusal."""
    yield _step(_EQUAL, number, skip_if_false=len(tests) + 3)
    yield _step(_LOAD, _ARGUMENTS + 8 * argument)  # its lower half: both architectures are little-endian
    yield from tests
    yield _refusal(number_of_error)
    yield _step(_RETURN, _ALLOW)


def _refusal(number_of_error: int) -> bytes:
    return _step(_RETURN, _ERRNO | number_of_error)


def _step(code: int, value: int, skip_if_true: int = 0, skip_if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, skip_if_true, skip_if_false, value)
