"""Builds in real child processes: what the parent gets, whatever happens to the child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from app.build.launch import Stopped, run
from app.build.workdir import BuildSpec, ProgressLine, WorkDir
from app.domain.builds import BuildOptions, BuiltEngine
from app.domain.jobs import EventKind, Failure, Stage
from tests import networks

LONG_S = 120.0


@pytest.fixture
def work(tmp_path: Path) -> WorkDir:
    return WorkDir(tmp_path / "work")


def launched(
    work: WorkDir,
    model: onnx.ModelProto | bytes,
    *,
    simplify: bool = False,
    timeout_s: float = LONG_S,
    on_progress: Callable[[ProgressLine], None] = lambda line: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> BuiltEngine | Failure | Stopped:
    source = work.root.parent / "uploaded"
    source.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    work.create(source)
    spec = BuildSpec("job", "auto", BuildOptions(simplify=simplify), batch_rows_max=32)
    return run(work, spec, timeout_s, on_progress, should_stop)


def processes(folder: Path) -> dict[int, str]:
    """Ids and command lines of the live processes that work in the folder."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(folder) in words and "app.build" in words:
                found[int(entry.name)] = words
    return found


def hit_when_inspecting(work: WorkDir, number: int) -> Callable[[ProgressLine], None]:
    """Sends the signal to the child as soon as it says that it inspects the model."""

    def hit(line: ProgressLine) -> None:
        if line.kind is EventKind.STAGE and line.stage is Stage.INSPECT:
            (pid,) = processes(work.root)
            os.kill(pid, number)

    return hit


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + LONG_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture(autouse=True)
def no_survivors(work: WorkDir) -> Iterator[None]:
    yield
    assert processes(work.root) == {}


def test_a_build_leaves_its_result_its_engine_and_its_log(work):
    lines: list[ProgressLine] = []

    built = launched(work, networks.classifier(), simplify=True, on_progress=lines.append)

    assert isinstance(built, BuiltEngine)
    assert work.read_result() == built
    assert work.engine.stat().st_size == built.size_bytes
    assert not work.failure.exists() and not list(work.root.glob("*.draft"))
    assert [line.stage for line in lines if line.kind is EventKind.STAGE] == [
        Stage.INSPECT,
        Stage.SIMPLIFY,
        Stage.COMPILE,
        Stage.VERIFY,
    ]
    assert all(line.message in work.log.read_text() for line in lines)


def test_the_model_is_linked_and_not_copied(work, tmp_path):
    source = networks.saved(networks.doubled(), tmp_path)
    work.create(source)

    assert work.model.samefile(source)


def test_an_expected_failure_keeps_its_code_and_hint(work):
    failure = launched(work, networks.custom_operators())

    assert isinstance(failure, Failure)
    assert failure.code == "operator_unsupported" and "acme::Foo" in failure.message and failure.hint
    assert "Traceback" not in work.log.read_text()
    assert not work.result.exists()


def test_a_truncated_model_is_refused(work):
    whole = networks.convolved().SerializeToString()

    failure = launched(work, whole[: len(whole) // 2])

    assert isinstance(failure, Failure) and failure.code == "model_invalid"


def test_a_bug_is_a_crash_with_its_last_line_and_a_traceback_in_the_log_only(work):
    work.root.mkdir()
    work.spec.write_text("{}")

    ended = subprocess.run([sys.executable, "-m", "app.build", str(work.root)], capture_output=True, text=True)

    failure = work.read_failure()
    assert ended.returncode == 4 and "Traceback" in ended.stderr
    assert failure is not None and failure.code == "build_crashed" and failure.detail


def test_a_killed_child_is_told_apart_as_a_want_of_memory(work):
    failure = launched(work, networks.endless_loop(), on_progress=hit_when_inspecting(work, signal.SIGKILL))

    assert isinstance(failure, Failure) and failure.code == "build_killed"
    assert "memory" in failure.message and "inspect" in failure.message


def test_a_crashed_child_is_told_with_its_signal_and_the_end_of_its_log(work):
    failure = launched(work, networks.endless_loop(), on_progress=hit_when_inspecting(work, signal.SIGSEGV))

    assert isinstance(failure, Failure) and failure.code == "build_crashed"
    assert "SIGSEGV" in failure.message
    assert "Segmentation fault" in failure.detail
    assert str(Path.cwd()) not in failure.detail and str(work.root) not in failure.detail


def test_an_endless_model_ends_at_the_time_limit(work):
    failure = launched(work, networks.endless_loop(), timeout_s=3)

    assert isinstance(failure, Failure) and failure.code == "build_timed_out"
    assert "3 s" in failure.message


def test_a_build_stops_when_it_is_asked_to(work):
    seen: list[ProgressLine] = []

    outcome = launched(work, networks.endless_loop(), on_progress=seen.append, should_stop=lambda: bool(seen))

    assert outcome == Stopped()
    assert work.read_result() is None


def test_a_child_that_ignores_the_request_to_stop_is_killed(work):
    asked: list[int] = []

    def freeze(line: ProgressLine) -> None:
        asked.extend(processes(work.root))
        os.kill(asked[0], signal.SIGSTOP)  # a stopped process does not see SIGTERM

    outcome = launched(work, networks.endless_loop(), on_progress=freeze, should_stop=lambda: bool(asked))

    assert outcome == Stopped()


def test_an_error_in_the_parent_takes_the_child_with_it(work):
    def broken(line: ProgressLine) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        launched(work, networks.endless_loop(), on_progress=broken)


PARENT = """
import sys; from pathlib import Path; from app.build.launch import run
from app.build.workdir import BuildSpec, WorkDir; from app.domain.builds import BuildOptions
spec = BuildSpec("job", "auto", BuildOptions(), 32)
run(WorkDir(Path(sys.argv[1])), spec, 600, lambda line: print(line.stage.value, flush=True), lambda: False)
"""


def test_the_child_dies_with_its_parent(work, tmp_path):
    work.create(networks.saved(networks.endless_loop(), tmp_path))
    with subprocess.Popen([sys.executable, "-c", PARENT, str(work.root)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline()
        children = [pid for pid, words in processes(work.root).items() if "--parent" in words]

        parent.kill()

    assert len(children) == 1
    assert eventually(lambda: processes(work.root) == {})


def test_the_simplifier_dies_with_its_parents(work, tmp_path):
    work.create(networks.saved(networks.classifier(), tmp_path))
    with subprocess.Popen([sys.executable, "-c", PARENT, str(work.root)], stdout=subprocess.PIPE) as parent:
        assert eventually(lambda: any(has_imported_onnx(pid) for pid in simplifiers(work.root)))
        (simplifier,) = simplifiers(work.root)
        os.kill(simplifier, signal.SIGSTOP)  # it would end by itself too soon

        parent.kill()

    assert eventually(lambda: processes(work.root) == {})


def test_a_child_whose_parent_is_gone_already_does_not_start(work):
    work.root.mkdir()

    ended = subprocess.run([sys.executable, "-m", "app.build", str(work.root), "--parent", "1"])

    assert ended.returncode == -signal.SIGKILL


def test_the_system_would_end_the_child_first(work):
    scores: list[str] = []

    def look(line: ProgressLine) -> None:
        scores.extend(Path(f"/proc/{pid}/oom_score_adj").read_text().strip() for pid in processes(work.root))

    launched(work, networks.endless_loop(), on_progress=look, should_stop=lambda: bool(scores))

    assert scores[0] == "1000"


def test_a_crash_of_the_simplifier_is_a_warning_and_the_build_goes_on(work):
    def hit_simplifier(line: ProgressLine) -> None:
        if line.kind is EventKind.STAGE and line.stage is Stage.SIMPLIFY:
            found: list[int] = []
            eventually(lambda: bool(found.extend(simplifiers(work.root)) or found))
            os.kill(found[0], signal.SIGSEGV)

    built = launched(work, networks.classifier(), simplify=True, on_progress=hit_simplifier)

    assert isinstance(built, BuiltEngine)
    assert any("signal 11" in text for text in built.warnings)


def simplifiers(folder: Path) -> list[int]:
    return [pid for pid, words in processes(folder).items() if "app.build.simplifier" in words]


def has_imported_onnx(pid: int) -> bool:
    try:
        return "onnx_cpp2py" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def test_what_an_earlier_attempt_left_is_not_taken_for_a_result(work):
    assert isinstance(launched(work, networks.doubled()), BuiltEngine)

    failure = launched(work, networks.custom_operators())

    assert isinstance(failure, Failure)
    assert work.read_result() is None


def test_a_result_without_its_whole_engine_is_no_result(work):
    assert isinstance(launched(work, networks.doubled()), BuiltEngine)
    work.engine.write_bytes(b"half")

    assert work.read_result() is None


def test_half_a_result_is_no_result(work):
    built = launched(work, networks.doubled())
    assert isinstance(built, BuiltEngine)
    text = work.result.read_text()
    work.result.write_text(text[: len(text) // 2])

    assert work.read_result() is None


def test_lines_are_read_once_and_only_when_they_are_complete(work):
    from app.build.workdir import ProgressReader

    work.root.mkdir()
    reader = ProgressReader(work)
    line = {"kind": "step", "stage": "verify", "message": "über", "at": "2026-01-01T00:00:00Z"}
    text = json.dumps(line, ensure_ascii=False).encode()

    work.progress.write_bytes(text[:-5])
    assert list(reader.new_lines()) == []
    work.progress.write_bytes(text + b"\nnot a line of ours\n")

    assert [read.message for read in reader.new_lines()] == ["über"]
    assert list(reader.new_lines()) == []
