"""The filter of system calls, run by an interpreter of its instructions: also for machines that this one is not."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from app.build.seccomp import instructions

PID = 4711
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
READ = os.O_RDONLY | os.O_CLOEXEC
WRITE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
THREAD = 0x3D0F00  # flags that glibc starts threads with
FORK = 0x1200011  # and processes

# Machine, number, arguments, and the refusal; None: allowed.
# Source: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux.
CALLS = [
    ("x86_64", 0, (), None),  # read
    ("x86_64", 257, (-100, 0, READ), None),  # openat
    ("x86_64", 257, (-100, 0, WRITE), errno.EACCES),
    ("x86_64", 257, (-100, 0, os.O_RDWR), errno.EACCES),
    ("x86_64", 2, (0, READ), None),  # open
    ("x86_64", 2, (0, WRITE), errno.EACCES),
    ("x86_64", 56, (THREAD,), None),  # clone
    ("x86_64", 56, (FORK,), errno.EPERM),
    ("x86_64", 435, (), errno.ENOSYS),  # clone3: glibc then uses clone
    ("x86_64", 59, (), errno.EPERM),  # execve
    ("x86_64", 41, (2, 1, 0), errno.EPERM),  # socket
    ("x86_64", 62, (PID, 6), None),  # kill
    ("x86_64", 62, (1, 9), errno.EPERM),
    ("x86_64", 62, (0, 9), errno.EPERM),
    ("x86_64", 302, (0,), None),  # prlimit64
    ("x86_64", 302, (1,), errno.EPERM),
    ("x86_64", 87, (), errno.EACCES),  # unlink
    ("x86_64", 425, (), errno.EPERM),  # io_uring_setup
    ("x86_64", 0x40000000 | 59, (), errno.EPERM),  # execve of the x32 interface
    ("aarch64", 63, (), None),  # read
    ("aarch64", 56, (-100, 0, READ), None),  # openat
    ("aarch64", 56, (-100, 0, WRITE), errno.EACCES),
    ("aarch64", 220, (THREAD,), None),  # clone
    ("aarch64", 220, (FORK,), errno.EPERM),
    ("aarch64", 435, (), errno.ENOSYS),  # clone3
    ("aarch64", 221, (), errno.EPERM),  # execve
    ("aarch64", 198, (2, 1, 0), errno.EPERM),  # socket
    ("aarch64", 129, (PID, 6), None),  # kill
    ("aarch64", 129, (1, 9), errno.EPERM),
    ("aarch64", 117, (), errno.EPERM),  # ptrace
    ("aarch64", 35, (), errno.EACCES),  # unlinkat
    ("aarch64", 45, (), errno.EACCES),  # truncate
    ("aarch64", 425, (), errno.EPERM),  # io_uring_setup
]


def refusal(code: bytes, number: int, architecture: int, arguments: tuple[int, ...]) -> int | None:
    """The error number that the filter answers a call with; None when it lets the call through."""
    padded = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*arguments, *[0] * 6)][:6]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
    at = accumulator = 0
    while True:
        operation, skip_true, skip_false, value = struct.unpack_from("<HBBI", code, 8 * at)
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:
            return value & 0xFFFF if value & 0xFFFF0000 == 0x00050000 else None
        else:
            tests = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}
            at += skip_true if tests[operation] else skip_false


@pytest.mark.parametrize("machine, number, arguments, expected", CALLS)
def test_a_call_is_let_through_or_refused(machine, number, arguments, expected):
    assert refusal(instructions(machine, PID), number, ARCHITECTURE[machine], arguments) == expected


def test_calls_of_another_architecture_are_refused():
    assert refusal(instructions("x86_64", PID), 0, 0x40000003, ()) == errno.EPERM


def test_a_machine_whose_calls_are_not_known_has_no_filter():
    with pytest.raises(OSError):
        instructions("riscv64", PID)
