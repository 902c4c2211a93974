"""The parent's side of a model's inspection; imports neither onnx nor torch, so that the server may call it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from app.build.confined import ConfinedChild
from app.domain.builds import ModelFormat
from app.domain.errors import BuildFailed, ModelInvalid
from app.domain.jobs import Failure
from app.domain.model_facts import ModelFacts
from app.storage.codec import decode

TIMEOUT_S = 60.0


def inspect_model(
    path: Path,
    format: ModelFormat,
    folder: Path,
    timeout_s: float = TIMEOUT_S,
    *,
    require_confinement: bool = False,
    on_start: Callable[[Callable[[], None]], None] | None = None,
) -> ModelFacts | Failure:
    """What an uploaded model tells, read in a short-lived confined child.

    Args:
        folder: holds the child's scratch folder meanwhile.
        on_start: gets what ends the child at once, to be called from any thread.

    Returns:
        The facts; or why a build of it would fail already.
    """
    try:
        return _facts(path, format, folder, timeout_s, require_confinement, on_start or (lambda kill: None))
    except BuildFailed as error:
        return Failure(error.code, error.detail, error.hint)


def _facts(
    path: Path,
    format: ModelFormat,
    folder: Path,
    timeout_s: float,
    require_confinement: bool,
    on_start: Callable[[Callable[[], None]], None],
) -> ModelFacts:
    request = {
        "format": format.value,
        "cpu_s": int(timeout_s * len(os.sched_getaffinity(0))) + 1,
        "require_confinement": require_confinement,
    }
    deadline = time.monotonic() + timeout_s
    child = ConfinedChild("app.build.inspect", path, folder, request)
    try:
        on_start(child.kill)
        child.receive(deadline)  # what is missing of the confinement
        message, _ = child.receive(deadline)
        return decode(ModelFacts, str(message.get("answer")))
    except ValidationError as error:
        raise ModelInvalid("What the model tells cannot be read.", hint="Export the network again.") from error
    finally:
        child.close()
