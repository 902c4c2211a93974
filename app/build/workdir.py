"""The folder of one build: fixed file names, and what they hold."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from app.domain.builds import BuildOptions, BuiltEngine, ModelFormat
from app.domain.jobs import EventKind, Failure, Stage
from app.storage.codec import decode, encode

T = TypeVar("T")
WHOLE_BYTES_MAX = 2**31 - 2**20  # of one protobuf message, with room for what changes in it


@dataclass(frozen=True)
class BuildSpec:
    """What the child is told, besides the model itself."""

    job: str
    backend: str  # a backend's name, or "auto"
    options: BuildOptions
    batch_rows_max: int  # most rows joined into one run when the options set no largest shape
    cache: str = ""  # folder that outlives the build, for what the next one can use; "" = one in the work folder
    min_calibration_samples: int = 32  # usable ones, else INT8 is refused
    format: ModelFormat = ModelFormat.ONNX
    whole_bytes_max: int = WHOLE_BYTES_MAX  # of a network in one file; the weights of larger ones stay beside it
    require_confinement: bool = False  # refuse to open a PyTorch file where the system lacks a limit


@dataclass(frozen=True)
class ProgressLine:
    """One line of the job's history, as the child tells it."""

    kind: EventKind
    stage: Stage | None  # None before the first stage
    message: str
    at: datetime  # UTC


class WorkDir:
    """Where each file of a build is, and how it is written and read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = root / "model.onnx"  # the upload; a hard link into the store, so nothing may write to it
        self.exported = root / "exported.onnx"  # the upload as ONNX, where it was PyTorch
        self.unpacked = root / "unpacked.onnx"  # the network, where the upload was an archive
        self.weights = "weights-*.bin"  # what did not fit into it: in files beside it, and beside all graphs made of it
        self.readable = root / "readable.onnx"  # the same, changed so that the runtime reads it; often missing
        self.dynamic = root / "dynamic.onnx"  # its batch made dynamic, as asked; often missing, like the next
        self.folded = root / "folded.onnx"  # the recipe's arithmetic in front of it
        self.simplified = root / "simplified.onnx"
        self.calibration = root / "calibration.zip"  # the samples; a hard link like the model; often missing
        self.candidates = root / "candidates"  # graphs and engines, before one is chosen
        self.cache = root / "cache"
        self.spec = root / "spec.json"
        self.progress = root / "progress.jsonl"
        self.log = root / "log.txt"  # stdout and stderr of the child
        self.engine = root / "engine.bin"
        self.result = root / "result.json"  # written last: its presence means success
        self.failure = root / "failure.json"

    @property
    def network(self) -> Path:
        """The upload as ONNX: exported, unpacked, or itself."""
        if self.exported.exists():
            return self.exported
        return self.unpacked if self.unpacked.exists() else self.model

    def create(self, model: Path, calibration: Path | None = None) -> None:
        """Make the folder and put the uploads into it: linked, or copied when they lie on another file system."""
        self.root.mkdir(parents=True, exist_ok=True)
        _put(model, self.model)
        self.calibration.unlink(missing_ok=True)
        if calibration is not None:
            _put(calibration, self.calibration)

    def clear(self) -> None:
        """Remove what an earlier attempt left; its log stays."""
        graphs = (self.exported, self.unpacked, self.readable, self.dynamic, self.folded, self.simplified)
        weights = self.root.glob(self.weights)
        for path in (*graphs, *weights, self.progress, self.engine, self.result, self.failure):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.candidates, ignore_errors=True)

    def write_spec(self, spec: BuildSpec) -> None:
        _write_whole(self.spec, encode(spec))

    def read_spec(self) -> BuildSpec:
        return decode(BuildSpec, self.spec.read_text())

    def write_result(self, built: BuiltEngine) -> None:
        """Tell success. The engine is made durable before."""
        with self.engine.open("rb") as file:
            os.fsync(file.fileno())
        _write_whole(self.result, encode(built))

    def read_result(self) -> BuiltEngine | None:
        """What the child built; None unless both the result and the whole engine are there."""
        built = _read(BuiltEngine, self.result)
        with suppress(FileNotFoundError):
            if built is not None and self.engine.stat().st_size == built.size_bytes:
                return built
        return None

    def write_failure(self, failure: Failure) -> None:
        _write_whole(self.failure, encode(failure))

    def read_failure(self) -> Failure | None:
        return _read(Failure, self.failure)

    def append_progress(self, line: ProgressLine) -> None:
        with self.progress.open("ab") as file:
            file.write(encode(line).encode() + b"\n")


class ProgressReader:
    """Reads each line once, as soon as it is complete."""

    def __init__(self, work: WorkDir) -> None:
        self._path = work.progress
        self._read_bytes = 0

    def new_lines(self) -> Iterator[ProgressLine]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                text = file.read()
        except FileNotFoundError:
            return
        complete = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(complete)
        for line in complete.splitlines():
            with suppress(ValidationError):  # a child that is crashing may write anything
                yield decode(ProgressLine, line.decode(errors="replace"))


def _put(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        shutil.copyfile(source, target)


def _write_whole(path: Path, text: str) -> None:
    """Write by rename, so that the file is there only when it is complete and durable."""
    draft = path.with_suffix(".draft")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _read(kind: type[T], path: Path) -> T | None:
    try:
        return decode(kind, path.read_text())
    except (FileNotFoundError, UnicodeDecodeError, ValidationError):
        return None
