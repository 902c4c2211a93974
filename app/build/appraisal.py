"""The parent's side of trying an uploaded engine in a short-lived process; starts no runtime itself."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from app.build import child
from app.domain.builds import Latency
from app.domain.errors import (
    BackendMissing,
    EngineCrashes,
    EngineForeign,
    EngineHangs,
    EngineRejected,
    EngineStale,
    EngineTooLarge,
    ServiceError,
)
from app.domain.jobs import Failure
from app.domain.tensors import Signature
from app.storage.codec import decode

ENGINE, REQUEST, ANSWER, FAILURE = "engine.bin", "backend", "answer.json", "failure.json"

_LOG = "log.txt"
_UNLIKE: dict[str, type[ServiceError]] = {  # every other failure is a rejection
    EngineStale.code: EngineForeign,
    EngineTooLarge.code: EngineTooLarge,
    BackendMissing.code: BackendMissing,
}


@dataclass(frozen=True)
class Appraised:
    """What an engine was seen to be and do."""

    signature: Signature
    latency: Latency  # of no runs, if it failed on made-up inputs
    device_bytes: int
    lengths: Mapping[str, int]  # of each output's last axis
    problem: str  # why it failed on made-up inputs; "" when it did not


def appraised(engine: Path, backend: str, folder: Path, timeout_s: float) -> Appraised:
    """Load the engine and run it, in a process of its own.

    Args:
        engine: its file.
        folder: where a scratch folder is made meanwhile.

    Raises:
        EngineRejected: not an engine of this backend, or one that cannot be fed.
        EngineForeign: of another runtime version or device.
        EngineCrashes, EngineHangs: the process did; it is gone.
        EngineTooLarge, BackendMissing
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="engine-", dir=folder))
    try:
        _put(engine, scratch / ENGINE)
        (scratch / REQUEST).write_text(backend)
        return _answer(scratch, timeout_s)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system, or one without links
        shutil.copyfile(source, target)


def _answer(scratch: Path, timeout_s: float) -> Appraised:
    deadline = time.monotonic() + timeout_s
    process = child.started("app.build.appraiser", scratch, scratch / _LOG)
    try:
        while not child.has_ended(process):
            if time.monotonic() > deadline:
                raise EngineHangs(
                    f"The engine had not loaded and answered after {timeout_s:g} s; its process was ended.",
                    hint="Try it with the runtime's own tools, or raise JETFORGE_ENGINE_TRIAL_S on a slow device.",
                )
            time.sleep(child.POLL_S)
    finally:
        child.end_group(process)
    try:
        return decode(Appraised, (scratch / ANSWER).read_text())
    except (FileNotFoundError, ValidationError):
        raise _failure(scratch, process.returncode) from None


def _failure(scratch: Path, status: int) -> ServiceError:
    try:
        told = decode(Failure, (scratch / FAILURE).read_text())
    except (FileNotFoundError, ValidationError):
        return _end(scratch, status)
    return _UNLIKE.get(told.code, EngineRejected)(told.message, hint=told.hint)


def _end(scratch: Path, status: int) -> ServiceError:
    if child.was_killed(status):
        return EngineTooLarge(
            "The process that tried the engine was ended by the system, most likely for want of memory.",
            hint="Unload engines, stop other programs, or build a smaller engine.",
        )
    words = child.last_words(scratch / _LOG, scratch).splitlines()
    said = next((line for line in words if line.strip()), "nothing")[:300]
    return EngineCrashes(
        f"The process that tried the engine ended {child.how_it_ended(status)}; it said: {said}",
        hint="The engine is damaged, or made for another version. Build it on this device from its model: POST /jobs.",
    )
