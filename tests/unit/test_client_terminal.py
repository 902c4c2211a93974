from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from scripted_server import SUCCEEDED, ScriptedServer, accept_build, scripted_server, server_sent, stage

PROGRAM = (
    "import argparse, signal, sys; from app.verbs import add_verbs; parser = argparse.ArgumentParser();"
    "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a parent in the background has it ignored
    "add_verbs(parser.add_subparsers()); args = parser.parse_args(); sys.exit(args.func(args))"
)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"network")
    return path


def test_ctrl_c_leaves_the_build_and_says_how_to_watch_and_cancel_it(server, model):
    accept_build(server)
    child = None

    def interrupt(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(stage(1, "compile").encode())
        assert child is not None and child.stderr is not None
        while "compile" not in child.stderr.readline():
            pass
        child.send_signal(signal.SIGINT)
        handler.rfile.read(1)  # until the client hangs up
        handler.close_connection = True

    server.on("GET /jobs/j1/events", interrupt)
    command = [sys.executable, "-c", PROGRAM, "build", str(model), "--name", "digits", "--url", server.url]

    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    status = child.wait(timeout=30)
    out, err = child.communicate()
    assert status == 130
    assert f"jetforge jobs j1 --watch --url {server.url}" in err
    assert f"jetforge jobs j1 --cancel --url {server.url}" in err
    assert "Traceback" not in out + err


def test_on_a_terminal_the_stages_are_shown_live_with_their_elapsed_time(server, model):
    accept_build(server, stage(1, "inspect"), stage(2, "compile"), server_sent("end", **SUCCEEDED))
    command = [sys.executable, "-c", PROGRAM, "build", str(model), "--name", "digits", "--url", server.url]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}

    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL, env=environment) as child:
        os.close(theirs)
        shown = _all_of(ours)
        status = child.wait(timeout=30)

    assert status == 0
    for text in ("upload", "✓ inspect", "✓ compile", "0:00:0"):
        assert text in shown


def _all_of(terminal: int) -> str:
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # Linux's way to say that the other side has closed
            chunk = b""
        if not chunk:
            os.close(terminal)
            return shown.decode(errors="replace")
        shown += chunk
