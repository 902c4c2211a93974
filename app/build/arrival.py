"""What was uploaded, made into ONNX, and the way to ask the upload itself."""

from __future__ import annotations

from app.build.export import DEFAULT_OPSET, Exported, to_onnx, torch_reference
from app.build.graph import Source
from app.build.reference import Reference, opened
from app.build.report import Report
from app.build.unpack import unpacked
from app.build.workdir import BuildSpec, WorkDir
from app.domain.builds import ModelFormat
from app.domain.errors import OpsetUnsupported
from app.domain.jobs import Stage


def arrived(work: WorkDir, spec: BuildSpec, opset_max: int, report: Report) -> Exported | None:
    """Make `work.network` out of the upload.

    Args:
        opset_max: newest that the backend reads.

    Returns:
        How it was exported from PyTorch; None when it was ONNX already.

    Raises:
        BuildFailed: it cannot be exported or unpacked, or was asked for at an opset that the backend does not read.
    """
    if spec.format is ModelFormat.ONNX_ARCHIVE:
        report.stage(Stage.EXPORT, "unpacking the archive")
        unpacked(work.model, work.unpacked, whole_bytes_max=spec.whole_bytes_max)
    if not spec.format.is_torch:
        return None
    report.stage(Stage.EXPORT, f"exporting {spec.format.value} to ONNX")
    opset = _asked_opset(spec, opset_max)
    exported = to_onnx(
        work.model,
        spec.format,
        work.exported,
        spec.options,
        report,
        opset=opset or min(DEFAULT_OPSET, opset_max),
        opset_max=opset or opset_max,
        require_confinement=spec.require_confinement,
    )
    report.step(f"exported by {exported.runtime} at opset {exported.opset}: {exported.how}")
    return exported


def _asked_opset(spec: BuildSpec, opset_max: int) -> int | None:
    opset = spec.options.opset
    if opset is not None and opset > opset_max:
        raise OpsetUnsupported(
            f"The option opset asks for {opset}; the backend {spec.backend} reads opsets up to {opset_max} here.",
            hint=f"Send opset={opset_max} or a lower one, or leave it out.",
        )
    return opset


def uploaded_reference(work: WorkDir, spec: BuildSpec, exported: Exported | None, source: Source) -> Reference:
    """The upload on its own runtime: PyTorch for PyTorch's files, else ONNX Runtime, the file itself before a copy
    made readable."""
    if exported is not None:
        runner = torch_reference(
            work.model, spec.format, work.root, exported, require_confinement=spec.require_confinement
        )
        return Reference(runner, source.inputs, runner.runtime)
    files = (work.network, work.readable) if work.readable.exists() else (work.network,)
    return opened(files, source.inputs)
