"""A confined process computes and does nothing else; each protection is tried in a real child."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

# What a confined child tries: name → Python. Each must raise; `scratch`, `victim`, `port` and `parent` are given.
ATTEMPTS = {
    "read another file": "open(victim).read()",
    "list another folder": "os.listdir(os.path.dirname(victim))",
    "write another file": "open(victim, 'w')",
    "append to another file": "open(victim, 'a')",
    "write into its scratch folder": "open(scratch + '/new', 'w')",
    "remove another file": "os.remove(victim)",
    "rename another file": "os.rename(victim, victim + '.moved')",
    "link another file": "os.link(victim, scratch + '/linked')",
    "change another file's mode": "os.chmod(victim, 0o777)",
    "make a folder": "os.mkdir(scratch + '/folder')",
    "connect": "socket.create_connection(('127.0.0.1', port), timeout=5)",
    "make a local socket": "socket.socketpair()",
    "start a program": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork()",
    "spawn": "subprocess.run(['/bin/true'])",
    "signal its parent": "os.kill(parent, 0)",
    "trace its parent": "ptrace(parent)",
    "read its parent's memory": "open(f'/proc/{parent}/environ').read()",
}

CHILD = """
import ctypes, json, os, socket, subprocess, sys, threading
from pathlib import Path
from app.build import confine

scratch, victim, port, attempts = json.loads(sys.stdin.read())
parent = os.getppid()

def ptrace(pid):
    if ctypes.CDLL(None, use_errno=True).ptrace(16, pid, 0, 0) < 0:
        raise PermissionError(ctypes.get_errno(), "ptrace")

missing = confine.enter(confine.Limits(4 << 30, 60, 1 << 20), (Path(sys.argv[1]),), Path(scratch))
early = Path(scratch, "early")
early.write_text("before the seal")
missing += confine.seal()

done = {}
for name, code in attempts.items():
    try:
        exec(code)
        done[name] = "done"
    except OSError as error:
        done[name] = type(error).__name__
counted = []
thread = threading.Thread(target=lambda: counted.append(sum(range(1000))))
thread.start()
thread.join()
import statistics  # a module of the standard library that nothing has imported yet
print(json.dumps({"missing": missing, "attempts": done, "threads": len(counted), "own": Path(sys.argv[1]).read_text(),
                  "scratch": early.read_text()}))
"""


def confined(tmp_path: Path) -> dict[str, Any]:
    """What a confined child could and could not do."""
    own, victim, scratch = tmp_path / "own", tmp_path / "elsewhere" / "victim", tmp_path / "scratch"
    for folder in (victim.parent, scratch):
        folder.mkdir()
    own.write_text("mine")
    victim.write_text("not mine")
    with socket.create_server(("127.0.0.1", 0)) as server:
        given = [str(scratch), str(victim), server.getsockname()[1], ATTEMPTS]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(own)],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert victim.read_text() == "not mine" and [path.name for path in scratch.iterdir()] == ["early"]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return confined(tmp_path_factory.mktemp("confined"))


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_confined_process_cannot(name, answer):
    if answer["missing"]:
        pytest.skip(f"this system lacks: {', '.join(answer['missing'])}")

    assert answer["attempts"][name] != "done"


def test_a_confined_process_can_read_its_file_and_its_packages_and_run_threads(answer):
    assert answer["own"] == "mine"
    assert answer["scratch"] == "before the seal"
    assert answer["threads"] == 1


LIMITED = """
import sys
from pathlib import Path
from app.build import confine

confine.enter(confine.Limits(1 << 30, 60, 1 << 20), (), Path(sys.argv[1]))
if sys.argv[2] == "memory":
    try:
        bytearray(2 << 30)
    except MemoryError:
        print("refused")
else:
    with open("large", "wb") as file:
        file.write(bytes(2 << 20))
"""


def test_a_confined_process_gets_no_more_memory_than_its_limit(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), "memory"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )

    assert done.stdout == "refused\n"


def test_a_confined_process_writes_no_file_larger_than_its_limit(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), "file"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )

    assert done.returncode != 0 and "File too large" in done.stderr
    assert (tmp_path / "large").stat().st_size <= 1 << 20


ALONE = """
import socket, sys
from pathlib import Path
from app.build import confine

missing = confine.enter(confine.Limits(1 << 30, 60, 1 << 20), (), Path(sys.argv[1]))
if "a network of its own" in missing:
    print("not here")
else:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        try:
            ours.sendto(b"hello", ("127.0.0.1", int(sys.argv[2])))
            print("sent")
        except OSError:
            print("unreachable")
"""


def test_not_even_this_machine_can_be_reached_from_a_network_of_its_own(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        command = [sys.executable, "-c", ALONE, str(tmp_path), str(server.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)

    if done.stdout == "not here\n":
        pytest.skip("this system lacks network namespaces")
    assert done.stdout == "unreachable\n"
