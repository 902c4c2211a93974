"""PyTorch files seen from the build child, which never imports torch: exported, and run, in confined processes."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from app.backends.base import Progress
from app.build.channel import ChannelBroken, Message
from app.build.confined import ConfinedChild
from app.build.export.messages import AskedShapes, ExportAnswer, ExportRequest
from app.domain.builds import BuildOptions, ModelFormat
from app.domain.errors import ExecutionFailed, ExportFailed
from app.domain.tensors import Tensors, TensorSpec
from app.storage.codec import decode, encode

DEFAULT_OPSET = 17  # every TensorRT since 8.5 reads it
_MODULE = "app.build.export"


@dataclass(frozen=True)
class Exported:
    """An uploaded PyTorch network as ONNX, found equal to itself in PyTorch."""

    path: Path
    inputs: tuple[TensorSpec, ...]  # as the file declares them
    outputs: tuple[TensorSpec, ...]
    opset: int
    how: str  # the way that worked, in words
    runtime: str  # "torch 2.13.0"


def to_onnx(
    source: Path,
    format: ModelFormat,
    target: Path,
    options: BuildOptions,
    progress: Progress,
    *,
    opset: int = DEFAULT_OPSET,
    opset_max: int | None = None,
    dynamic_batch: bool = True,
    timeout_s: float = 1800,
    require_confinement: bool = False,
) -> Exported:
    """Write the network as ONNX, proven equal to it by running both.

    Args:
        target: made anew; its folder also holds the scratch folder while this runs.
        options: its shapes are those of the request.
        opset: tried first.
        opset_max: newest that the backend reads; None: 20, or `opset` if that is newer.
        dynamic_batch: make axis 0 of the inputs of any length, where the network takes several.

    Raises:
        BuildFailed: ExportFailed, ShapesNeeded, ShapesContradict, SourceFailed, ModelUnsafe, TorchMissing,
            ConfinementMissing, BuildKilled or BuildTimedOut.
    """
    asked = AskedShapes(options.input_shapes, options.min_shapes, options.opt_shapes, options.max_shapes)
    request = ExportRequest(format, opset, opset_max or max(opset, 20), asked, dynamic_batch)
    target.unlink(missing_ok=True)
    file = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        message = {"task": "export", "request": encode(request), "target": file}
        child = ConfinedChild(
            _MODULE, source, target.parent, _with_limits(message, timeout_s, require_confinement), passed=(file,)
        )
        try:
            answer = _exported(child, progress, time.monotonic() + timeout_s)
        finally:
            child.close()
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    if not answer.is_dynamic and dynamic_batch:
        progress.step("the batch is fixed by the network: it takes no other number of rows")
    progress.step(f"exported by the {answer.how}, equal to {answer.runtime}")
    return Exported(target, answer.inputs, answer.outputs, answer.opset, answer.how, answer.runtime)


class TorchReference:
    """The uploaded network on its own runtime, in a confined process: for verification."""

    def __init__(
        self,
        source: Path,
        format: ModelFormat,
        folder: Path,
        outputs: tuple[str, ...],
        *,
        timeout_s: float = 3600,
        require_confinement: bool = False,
    ) -> None:
        """Open the network.

        Args:
            folder: holds the process's scratch folder.
            outputs: names in the order that the exported file has.
            timeout_s: of processor and wall time for everything that is asked of it.

        Raises:
            BuildFailed: as for `to_onnx`.
        """
        self._outputs = outputs
        self._deadline = time.monotonic() + timeout_s
        message = _with_limits({"task": "answer", "format": format.value}, timeout_s, require_confinement)
        self._child = ConfinedChild(_MODULE, source, folder, message)
        try:
            self._child.receive(self._deadline)  # what is missing of the confinement: told by the export already
            self.runtime = str(self._child.receive(self._deadline)[0].get("runtime"))[:100]
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Tensors) -> Tensors:
        """The network's answer, by the names of the exported file's outputs.

        Raises:
            ExecutionFailed: it does not take these inputs.
            BuildFailed: its process ended, or the time is up.
        """
        with suppress(ChannelBroken):  # it has ended: receive() says why
            self._child.channel.send({}, inputs)
        message, answer = self._child.receive(self._deadline)
        if "refused" in message:
            raise ExecutionFailed(str(message["refused"])[:1000], hint="Run the network in PyTorch on such inputs.")
        missing = [name for name in self._outputs if name not in answer]
        if missing:
            raise ExecutionFailed(
                f"The network's answer lacks the output {missing[0]!r}.", hint="Upload the network again."
            )
        return {name: answer[name] for name in self._outputs}

    def close(self) -> None:
        self._child.close()


def torch_reference(
    source: Path, format: ModelFormat, folder: Path, exported: Exported, *, require_confinement: bool = False
) -> TorchReference:
    """The network behind an export, to be run on the same inputs as its engine; to be closed by the caller."""
    names = tuple(spec.name for spec in exported.outputs)
    return TorchReference(source, format, folder, names, require_confinement=require_confinement)


def _exported(child: ConfinedChild, progress: Progress, deadline: float) -> ExportAnswer:
    while True:
        message, _ = child.receive(deadline)
        if message.get("missing"):
            progress.step(f"this system cannot confine the export in all ways; missing: {_text(message['missing'])}")
        elif "step" in message:
            progress.step(_text(message["step"]))
        elif "answer" in message:
            return _checked(message["answer"])


def _checked(text: object) -> ExportAnswer:
    try:
        return decode(ExportAnswer, str(text))
    except ValidationError as error:
        raise ExportFailed(
            "The process that exported the model gave an answer that cannot be read.",
            hint="Export the network to ONNX where it was trained and upload that.",
        ) from error


def _with_limits(message: Message, timeout_s: float, require_confinement: bool) -> Message:
    processors = len(os.sched_getaffinity(0))
    return {**message, "cpu_s": int(timeout_s * processors) + 1, "require_confinement": require_confinement}


def _text(words: object) -> str:
    """A stranger's words on one line of the job's history."""
    text = ", ".join(map(str, words)) if isinstance(words, list) else str(words)
    return "".join(c if c.isprintable() else " " for c in text)[:500]
