"""What a process gives back of the memory that its threads have freed, each tried in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from app.heap import CALM_BYTES, Calm

LARGE = CALM_BYTES + 1
USED_MIB = 40  # by each thread; the bound is 256
MAIN = """
import sys, threading
from ctypes import CDLL, c_size_t, c_void_p, memset
from app import heap

libc = CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = c_void_p, [c_size_t], [c_void_p]
mib, count = map(int, sys.argv[1:])

def anonymous_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("RssAnon"))

def use(barrier):
    parts = [libc.malloc(1 << 20) for _ in range(mib)]
    for part in parts:
        memset(part, 1, 1 << 20)
    barrier.wait()
    for part in reversed(parts):
        libc.free(part)

heap.prepare()
before = anonymous_mib()
barrier = threading.Barrier(count)
threads = [threading.Thread(target=use, args=(barrier,)) for _ in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
kept = anonymous_mib() - before
heap.trim()
print(kept, anonymous_mib() - before)
"""


pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told what to keep")


def kept_and_left_mib(threads: int) -> tuple[int, int]:
    """More than at first, once all is freed, and once the heap is trimmed."""
    command = [sys.executable, "-c", MAIN, str(USED_MIB), str(threads)]
    kept, left = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(kept), int(left)


def test_what_is_freed_is_kept_for_the_next_until_the_heap_is_trimmed() -> None:
    kept_mib, left_mib = kept_and_left_mib(threads=1)

    assert kept_mib > USED_MIB - 4
    assert left_mib < 4


def test_what_many_threads_have_freed_is_given_back_as_well() -> None:
    _, left_mib = kept_and_left_mib(threads=4)

    assert left_mib < 4


@pytest.mark.parametrize(
    ("received_bytes", "trims"),
    [
        ([0, 0, 0, 0, 0], 0),  # nothing was kept
        ([LARGE, 0, 0], 0),
        ([LARGE, 0, 0, 0, 0, 0, 0], 1),
        ([LARGE, 1000, 1000, 1000], 1),  # others poll
        ([LARGE, 0, 0, LARGE, 0, 0], 0),
        ([LARGE, 0, 0, 0, LARGE, 0, 0, 0, 0], 2),
    ],
)
def test_the_heap_is_trimmed_once_when_traffic_has_calmed_down(received_bytes: list[int], trims: int) -> None:
    trimmed: list[None] = []
    calm = Calm(lambda: trimmed.append(None))

    for nbytes in received_bytes:
        calm.received_bytes += nbytes
        calm.look()

    assert len(trimmed) == trims
