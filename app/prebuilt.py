"""Engines that were built elsewhere: tried in a process of their own, then published like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from app.backends.base import Backend
from app.build.appraisal import Appraised, appraised
from app.build.preprocessing import refuse_labels, resolved_preprocess
from app.domain.builds import (
    Accuracy,
    BuildOptions,
    BuiltEngine,
    EngineRecord,
    ModelFormat,
    Precision,
    Publication,
    checked_name,
    engine_key,
)
from app.domain.errors import (
    BackendMissing,
    BuildFailed,
    EmptyUpload,
    EngineRejected,
    EngineTooLarge,
    InvalidOption,
    ModelRejected,
)
from app.domain.file_names import AT_MISSING, is_file_name
from app.domain.preprocess import Preprocess
from app.storage.artefacts import Draft
from app.storage.catalogue import Catalogue
from app.storage.formats import model_format
from app.storage.jobs import utc_now
from app.storage.strangers import TENSORRT

_UNVERIFIED = Accuracy((), samples=0, inputs="none", reference="none: uploaded as an engine")
_HEAD_BYTES = 1 << 20  # the metadata that Ultralytics puts before an engine is far smaller
_ORT = b"ORTM"  # at byte 4 of ONNX Runtime's own format
_TO_BUILD = {
    ModelFormat.TORCHSCRIPT: "a TorchScript network",
    ModelFormat.PT2: "a program of torch.export (.pt2)",
    ModelFormat.ONNX_ARCHIVE: "an archive of an ONNX network",
}


class Prebuilt:
    """Takes engines in. One is tried at a time: hold `turn` meanwhile."""

    def __init__(
        self,
        catalogue: Catalogue,
        backend: Callable[[str], Backend],
        folder: Path,
        *,
        timeout_s: float,
        budget_bytes: int,
    ) -> None:
        """
        Args:
            backend: the one of that name, or the best for "auto".
            folder: for scratch folders.
            timeout_s: for an engine to load and to answer.
            budget_bytes: of all warm engines together.
        """
        self.turn = asyncio.Lock()
        self._catalogue = catalogue
        self._backend = backend
        self._folder = folder
        self._timeout_s = timeout_s
        self._budget_bytes = budget_bytes

    def receive(self, draft: Draft, name: str, options: BuildOptions) -> EngineRecord:
        """Try an uploaded engine and publish it under the name; the same bytes and options twice are one version.

        Args:
            options: backend, preprocess and labels count.

        Raises:
            InvalidName, EmptyUpload, InvalidOption, and what `appraised` raises. Nothing is stored then.
            EngineRejected: also for a network that has to be built first.
        """
        checked_name(name)
        if draft.size_bytes == 0:
            raise EmptyUpload("The engine file has no bytes.", hint="Check the path after the @ of curl's -F file=@….")
        self._refuse_too_large(name, draft.size_bytes)
        backend = self._backend_for(draft.path, options.backend)
        found = appraised(draft.path, backend.name, self._folder, self._timeout_s)
        self._refuse_too_large(name, found.device_bytes)
        built = _described(found, options, backend, draft.size_bytes)
        options = BuildOptions(
            backend=options.backend, precision=Precision.UNKNOWN, preprocess=options.preprocess, labels=options.labels
        )
        blob = draft.commit()
        key = f"uploaded-{engine_key(blob, options, None, built.facts)}"
        return self._catalogue.add_engine(Publication(name, key, blob, None, None, options, built), utc_now())

    def _backend_for(self, path: Path, asked: str) -> Backend:
        fitting = _fitting(path)
        try:
            return self._backend(fitting if asked == "auto" else asked)
        except BackendMissing as error:
            if fitting != "tensorrt" or asked not in ("auto", "tensorrt"):
                raise
            raise BackendMissing(
                f"The file is a TensorRT engine, and this device has no TensorRT. {error.detail}",
                hint=f"{error.hint}; or send the network that the engine was built from: POST /jobs.",
            ) from error

    def _refuse_too_large(self, name: str, size_bytes: int) -> None:
        if size_bytes > self._budget_bytes:
            raise EngineTooLarge(
                f"{name} needs {size_bytes >> 20} MiB; the budget of all engines is {self._budget_bytes >> 20} MiB.",
                hint="Raise engine_memory_mib, or build a smaller engine.",
            )


def _fitting(path: Path) -> str:
    """The backend that such a file is for; "auto" where only trying tells.

    Raises:
        EngineRejected: it is a network of a kind that no backend loads, or a file's name.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head[4:8] == _ORT:
        return "onnxruntime"
    metadata_bytes = 4 + int.from_bytes(head[:4], "little") if head[4:5] == b"{" else 0
    if head.startswith(TENSORRT, metadata_bytes):
        return "tensorrt"
    try:
        format = model_format(path)
    except ModelRejected:
        if is_file_name(head):
            raise EngineRejected("The engine file is a file's name, not the file.", hint=AT_MISSING) from None
        return "auto"
    if format is not ModelFormat.ONNX:
        raise EngineRejected(
            f"The file is {_TO_BUILD[format]}, which is no engine yet.",
            hint="Have one built from it: POST /jobs with -F name=… -F model=@….",
        )
    return "onnxruntime"


def _described(found: Appraised, options: BuildOptions, backend: Backend, size_bytes: int) -> BuiltEngine:
    warnings = ["Uploaded as an engine: its answers were never compared with a model's."]
    if found.problem:
        warnings.append(f"It failed on made-up inputs, so its latency is not known: {found.problem}")
    return BuiltEngine(
        size_bytes=size_bytes,
        facts=backend.facts(),
        signature=found.signature,  # rows_max 1: nobody has proven that rows do not depend on each other
        preprocess=_recipe(found, options),
        labels=options.labels,
        accuracy=_UNVERIFIED,
        latency=found.latency,
        built_in_s=0,
        warnings=tuple(warnings),
        precision=Precision.UNKNOWN,
        device_bytes=found.device_bytes,
    )


def _recipe(found: Appraised, options: BuildOptions) -> Preprocess | None:
    """The recipe for images; refuses one, or labels, that do not fit."""
    signature = found.signature
    try:
        classes = found.lengths.get(signature.outputs[0].name, len(options.labels)) if signature.outputs else 0
        refuse_labels(options.labels, signature, classes)
        return resolved_preprocess(signature, options.preprocess)
    except BuildFailed as error:  # a build has stages to fail in; an upload is refused
        raise InvalidOption(error.detail, hint=error.hint) from error
