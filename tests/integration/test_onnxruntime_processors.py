"""On which processors the threads of a run are."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import onnx
import pytest

from app.backends.base import LoadedEngine
from app.backends.onnxruntime import OnnxRuntime
from tests import networks
from tests.fakes import LONG_S

PROCESSORS = os.sched_getaffinity(0)
pytestmark = pytest.mark.skipif(len(PROCESSORS) < 2, reason="there is one processor only")


@contextmanager
def loaded(folder: Path, threads: int | None = None) -> Iterator[LoadedEngine]:
    path = folder / "network.onnx"
    onnx.save_model(networks.convolved(), path)
    with closing(OnnxRuntime(threads).load(path)) as engine:
        yield engine


def processors_of_new_threads(engine: LoadedEngine, at_once: int | None, *, are_bound: bool = False) -> list[set[int]]:
    """Those that the calling thread and every thread that the context brings may run on.

    Args:
        are_bound: wait until each is bound to some; a thread does that itself when it starts.
    """
    before = set(Path("/proc/self/task").iterdir())
    with closing(engine.open_context(at_once)):
        new = sorted(set(Path("/proc/self/task").iterdir()) - before)
        end_s = time.monotonic() + LONG_S
        while True:
            places = [os.sched_getaffinity(0), *(os.sched_getaffinity(int(task.name)) for task in new)]
            if not are_bound or PROCESSORS not in places or time.monotonic() > end_s:
                return places
            time.sleep(0.01)


def test_each_thread_of_a_run_on_all_processors_has_one_of_its_own(tmp_path: Path) -> None:
    with loaded(tmp_path) as engine:
        places = processors_of_new_threads(engine, 1, are_bound=True)

    assert sorted(places, key=min) == [{processor} for processor in sorted(PROCESSORS)]


def test_the_thread_is_free_again_when_the_context_has_closed(tmp_path: Path) -> None:
    with loaded(tmp_path) as engine:
        processors_of_new_threads(engine, 1)

    assert os.sched_getaffinity(threading.get_native_id()) == PROCESSORS


@pytest.mark.parametrize(("threads", "at_once"), [(None, len(PROCESSORS)), (None, None), (len(PROCESSORS), 1)])
def test_a_run_that_has_not_all_processors_to_itself_goes_where_the_system_sends_it(
    tmp_path: Path, threads: int | None, at_once: int | None
) -> None:
    with loaded(tmp_path, threads) as engine:
        places = processors_of_new_threads(engine, at_once)

    assert all(place == PROCESSORS for place in places)
