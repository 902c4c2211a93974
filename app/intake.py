"""What a client hands in: models, calibration sets, build requests."""

from __future__ import annotations

import re
from collections.abc import Callable

from app.backends.base import Backend
from app.domain.builds import (
    Builder,
    BuildOptions,
    CalibrationSet,
    EngineRecord,
    Precision,
    Publication,
    SourceModel,
    checked_name,
    engine_key,
)
from app.domain.errors import CalibrationRequired, EmptyUpload, InvalidOption, PrecisionUnsupported
from app.domain.jobs import Job, JobState
from app.domain.webhooks import WebhookRules
from app.storage.archives import ArchiveLimits, checked_archive
from app.storage.artefacts import Draft
from app.storage.catalogue import Catalogue
from app.storage.formats import model_format
from app.storage.jobs import JobQueue, utc_now

_LATEST_JOBS = 50  # of one name: looked through for a rebuild that is under way or has failed


class Intake:
    """Checks what arrives before anything is stored, then stores it."""

    def __init__(
        self,
        catalogue: Catalogue,
        queue: JobQueue,
        backend: Callable[[str], Backend],
        limits: ArchiveLimits,
        webhooks: WebhookRules = WebhookRules(),  # noqa: B008, frozen: none are allowed
    ) -> None:
        self._catalogue = catalogue
        self._queue = queue
        self._backend = backend
        self._limits = limits
        self.webhooks = webhooks

    def receive_model(self, draft: Draft, filename: str) -> SourceModel:
        """Store an uploaded network; the same bytes twice are one model.

        Raises:
            ModelRejected: the bytes are not a network that this service reads; nothing is stored.
        """
        format = model_format(draft.path)
        size_bytes = draft.size_bytes
        model = SourceModel(draft.commit(), cleaned(filename, "model"), format, size_bytes, utc_now())
        return self._catalogue.add_model(model)

    def check_calibration(self, draft: Draft) -> int:
        """The number of files in an uploaded archive.

        Raises:
            ArchiveRejected: not a zip, or past a limit.
        """
        if draft.size_bytes == 0:
            raise EmptyUpload("The calibration file has no bytes.", hint="Check the path after the @ of curl's -F.")
        return checked_archive(draft.path, self._limits)

    def receive_calibration(self, draft: Draft, filename: str) -> CalibrationSet:
        """Store an uploaded archive of samples; the same bytes twice are one set. Nothing is stored if refused."""
        entries, size_bytes = self.check_calibration(draft), draft.size_bytes
        calibration = CalibrationSet(draft.commit(), cleaned(filename, "calibration"), size_bytes, entries, utc_now())
        return self._catalogue.add_calibration(calibration)

    def checked(self, name: str, options: BuildOptions, *, has_calibration: bool) -> None:
        """Refuse a request that can never be built, before its upload is stored.

        Raises:
            InvalidName, BackendMissing, PrecisionUnsupported, InvalidOption, CalibrationRequired
        """
        checked_name(name)
        backend = self._backend(options.backend)
        if options.precision not in {*backend.precisions, Precision.AUTO}:
            raise PrecisionUnsupported(
                f"The backend {backend.name} cannot build {options.precision.value} here.",
                hint=f"It builds: {', '.join(sorted(p.value for p in backend.precisions))}; and auto.",
            )
        _refuse_foreign(options, backend)
        if options.precision is Precision.INT8 and not has_calibration:
            raise CalibrationRequired(
                "INT8 needs samples to find the range of each layer, and none were sent.",
                hint="-F calibration=@images.zip with a few hundred images like those seen in use, or calibration_id of"
                " a stored set. Without samples build with precision=fp16.",
            )

    def request_build(
        self,
        name: str,
        model: str,
        calibration: str | None,
        options: BuildOptions,
        idempotency: tuple[str, str] | None = None,
        webhook: str | None = None,
    ) -> Job:
        """Queue a build, or finish it at once when the very engine exists already.

        Args:
            model: id of a stored model; `calibration` likewise.
            idempotency: the client's key, and a digest of what it asked for.
            webhook: URL that is told of the job's end; None: the default one, if any; "": none.

        Raises:
            ModelNotFound, CalibrationNotFound, IdempotencyConflict, WebhookRefused, and what `checked` raises.
        """
        hook = self.webhooks.checked(webhook)
        self.checked(name, options, has_calibration=calibration is not None)
        source = self._catalogue.model(model)
        samples = self._catalogue.calibration(calibration).digest if calibration is not None else None
        key = engine_key(source.digest, options, samples, self._backend(options.backend).facts())
        existing = self._catalogue.engine_by_key(key)
        if existing is not None:
            return self._queue.add_finished(renamed(existing, name), idempotency, hook)
        return self._queue.add(name, source.digest, samples, options, idempotency, hook)

    def rebuild(self, engine: EngineRecord) -> Job | None:
        """Have a stale or damaged engine built again as it was asked for; it becomes the newest version of its name.

        Returns:
            The job, an earlier one if it still waits or runs; None when that build has failed since: another one
            would fail as well; or when it was uploaded as an engine.
        """
        if engine.model is None:
            return None
        for job in self._queue.list(name=engine.name, limit=_LATEST_JOBS):
            if (job.model, job.calibration, job.options) == (engine.model, engine.calibration, engine.options):
                if not job.state.is_final:
                    return job
                if job.state is JobState.FAILED and job.created_at > engine.created_at:
                    return None
        return self.request_build(engine.name, engine.model, engine.calibration, engine.options)


def _refuse_foreign(options: BuildOptions, backend: Backend) -> None:
    """Raise InvalidOption for what this backend does not have."""
    if options.int8_method is not None and options.int8_method not in backend.int8_methods:
        raise InvalidOption(
            f"The backend {backend.name} has no int8_method {options.int8_method.value} here.",
            hint=f"It has: {', '.join(method.value for method in backend.int8_methods) or 'none'}.",
        )
    if options.builder is Builder.TRTEXEC and backend.name != "tensorrt":
        raise InvalidOption(
            f"The backend {backend.name} is not built by trtexec.",
            hint="Leave builder out, or choose backend=tensorrt.",
        )


def renamed(engine: EngineRecord, name: str) -> Publication:
    """The same engine, to be published under this name."""
    return Publication(
        name=name,
        key=engine.key,
        blob=engine.blob,
        model=engine.model,
        calibration=engine.calibration,
        options=engine.options,
        built=engine.built,
    )


def cleaned(filename: str, default: str) -> str:
    """A client's file name, as a label only: its last part, printable, at most 100 characters."""
    last = re.split(r"[/\\]", filename)[-1]
    return "".join(c for c in last if c.isprintable())[:100].strip() or default
