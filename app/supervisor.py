"""Keeps the worker process of `jetforge serve` alive."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time

from app.backoff import Backoff

log = logging.getLogger(__name__)

STOP_S = 10.0  # patience with a worker that was asked to stop


class Supervisor:
    """Starts `jetforge work`, starts it again whenever it ends, and ends it with the service."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name="worker supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the worker to stop; kill it if it does not. A running build goes back to the queue."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            _end(process)
        self._thread.join(STOP_S)

    def _watch(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            started = time.monotonic()
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "app", "work", "--parent", str(os.getpid()), *self._arguments]
                )
            status = self._process.wait()
            if self._stopping.is_set():
                return
            pause_s = backoff.after(time.monotonic() - started)
            log.error("worker ended", extra={"status": status, "restart_in_s": pause_s})
            self._stopping.wait(pause_s)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
