"""What the calibration archive of a build is good for: to calibrate INT8, to prove the engine, or neither."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from app.backends.base import Progress, Samples
from app.build.plan import HeldBack, Plan
from app.build.sample_labels import Classes, labels_in
from app.build.samples import SampleSource, Selection, Survey, surveyed
from app.domain.builds import Precision
from app.domain.errors import (
    ArchiveRejected,
    BuildFailed,
    CalibrationDegenerate,
    CalibrationMismatch,
    CalibrationRequired,
    CalibrationTooSmall,
    ServiceError,
)
from app.domain.preprocess import SIZE_HINT
from app.domain.tensors import TensorSpec, described
from app.storage.archives import opened_archive

ENOUGH = 100  # samples; with fewer INT8 is built, with a warning
_SHOWN = 3
_HINT = "Put a few hundred images like those seen in use into the archive, or build with precision=fp16."


@dataclass(frozen=True)
class Calibration:
    samples: Samples | None  # to calibrate with; None: `problem` says why not
    problem: ServiceError | None
    held_back: HeldBack | None  # to prove the engine with


def no_calibration() -> Calibration:
    problem = CalibrationRequired("INT8 needs samples, and none were sent.", hint="-F calibration=@images.zip")
    return Calibration(None, problem, None)


def read_calibration(
    archive: Path,
    plan: Plan,
    precision: Precision,
    classes: Classes,
    minimum: int,
    progress: Progress,
) -> Calibration:
    """Survey an archive and decide what it is used for.

    Args:
        precision: what was asked for; without INT8 an unusable archive is a warning.
        classes: of the model; none unless it is a classifier.
        minimum: usable samples that INT8 needs.

    Raises:
        BuildFailed: INT8 was asked for, and the archive cannot calibrate it.
        LabelsContradict: labels in it are not classes of the model.
    """
    needed = precision in (Precision.INT8, Precision.AUTO)
    survey: Survey | None = None
    problem: BuildFailed | ArchiveRejected | None
    try:
        survey = surveyed(SampleSource(archive, _rows(plan), plan.preprocess))
        _tell(survey, progress)
        problem = _problem(survey, minimum)
    except (BuildFailed, ArchiveRejected) as error:
        problem = error
    if problem is not None and precision is Precision.INT8:
        raise problem
    if survey is None or isinstance(problem, CalibrationDegenerate) or not survey.rows:
        assert problem is not None
        progress.warn(f"The calibration archive is not used. {problem.detail}")
        return Calibration(None, problem, None)
    if needed and problem is None and len(survey.rows) < ENOUGH:
        progress.warn(f"Only {len(survey.rows)} samples calibrate and prove INT8; {ENOUGH} or more make it steadier.")
    if not needed or problem is not None:
        return Calibration(None, problem, _held_back(survey.everything(), archive, classes, progress))
    held_back = _held_back(survey.held_back(), archive, classes, progress)
    samples = survey.calibration()
    progress.step(f"{samples.count} samples calibrate, {held_back.samples.count} are held back for the proof")
    return Calibration(samples, None, held_back)


def _rows(plan: Plan) -> dict[str, TensorSpec]:
    """One row of each input, as the build runs it."""
    lengths = {shape[:1] for shape in plan.shapes.base.values()}
    if lengths != {(plan.shapes.rows,)}:
        raise CalibrationMismatch(
            f"The model's inputs are {described(plan.source.inputs) or 'none'}: samples need an axis 0 that all of them"
            " share to lie along.",
            hint="Build with precision=fp16 or fp32.",
        )
    return {spec.name: replace(spec, shape=plan.shapes.base[spec.name][1:]) for spec in plan.source.inputs}


def _tell(survey: Survey, progress: Progress) -> None:
    progress.step(
        f"calibration archive: {len(survey.rows)} usable samples"
        + (f", {survey.copies} copies of them left out" if survey.copies else "")
        + (f", {survey.skipped} files not looked at" if survey.skipped else "")
    )
    if survey.unusable:
        progress.warn(f"{len(survey.unusable)} files of the calibration archive cannot be used: {_named(survey)}.")


def _named(survey: Survey) -> str:
    named = [f"{name[:80]} ({reason.rstrip('.')})" for name, reason in survey.unusable[:_SHOWN]]
    return "; ".join(named) + ("; …" if len(survey.unusable) > _SHOWN else "")


def _problem(survey: Survey, minimum: int) -> BuildFailed | None:
    """Why the samples cannot calibrate; None when they can."""
    found = len(survey.rows) + survey.copies
    if not found and survey.is_misfit:
        return CalibrationMismatch(
            f"None of the calibration samples fits the model: {_named(survey)}.",
            hint="Send samples of the model's input shapes, or the input_shapes that the samples have. For images, give"
            f" their size where the model leaves it open: {SIZE_HINT}.",
        )
    if found < minimum:
        why = f" {len(survey.unusable)} files cannot be used: {_named(survey)}." if survey.unusable else ""
        if survey.foreign:
            why += f" {len(survey.foreign)} are of other kinds: {survey.foreign[0][:80]!r} first."
        return CalibrationTooSmall(
            f"The calibration archive holds {found} usable samples; INT8 needs {minimum}.{why}",
            hint=_HINT,
        )
    if len(survey.rows) < minimum:
        return CalibrationDegenerate(
            f"Of the {found} calibration samples only {len(survey.rows)} differ; INT8 needs {minimum} different ones.",
            hint=_HINT,
        )
    alike = survey.spread.problem()
    if alike:
        return CalibrationDegenerate(f"The calibration images are all but blank or equal: {alike}.", hint=_HINT)
    return None


def _held_back(selection: Selection, archive: Path, classes: Classes, progress: Progress) -> HeldBack:
    known: dict[str, int] = {}
    if classes.count:
        with opened_archive(archive) as files:
            known = dict(labels_in(files, classes))
    labels = [known.get(row.entry) for row in selection.rows]
    if known:
        progress.step(f"{sum(label is not None for label in labels)} of the samples for the proof have a label")
    return HeldBack(selection, labels)
