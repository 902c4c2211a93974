"""What can go wrong, in words for the person who has to act.

Each leaf has a unique `code` and a paragraph in `docs/errors.md`. The families below decide the HTTP status
(in `api.problems`, nowhere else); `BuildFailed` never becomes a status: it is a job's `failure`.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """An expected failure: what was found and wanted (`detail`), and what to do (`hint`).

    `detail` and `hint` reach the client: no paths of this machine, no secrets.
    """

    code: ClassVar[str] = "service_error"
    title: ClassVar[str] = "The request failed"

    def __init__(self, detail: str, *, hint: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


class InvalidInput(ServiceError):
    """The request can never succeed as it is (422)."""


class NotFound(ServiceError):
    """Nothing of that name or id is stored (404)."""


class Conflict(ServiceError):
    """The request contradicts the state of what it names (409)."""


class TooLarge(ServiceError):
    """A limit of size was passed (413)."""


class Unsupported(ServiceError):
    """The content type is not one that this endpoint reads (415)."""


class Unavailable(ServiceError):
    """It may succeed later (503, Retry-After)."""

    retry_after_s: ClassVar[int] = 1


class Unauthorised(ServiceError):
    """It is not known who asks (401, WWW-Authenticate)."""


class Forbidden(ServiceError):
    """Who asks may not do this (403)."""

    def __init__(self, detail: str, *, hint: str, who: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.who = who  # name of the key that was shown; None: none was


class TooMany(ServiceError):
    """A limit of this visitor is reached (429, Retry-After)."""

    def __init__(self, detail: str, *, hint: str, retry_after_s: int) -> None:
        super().__init__(detail, hint=hint)
        self.retry_after_s = retry_after_s


class RunFailed(ServiceError):
    """The engine itself failed on input that passed every check (500)."""


class BuildFailed(ServiceError):
    """A build step failed; becomes the job's `failure`."""


# --- input -----------------------------------------------------------------------------------------------------


class InvalidRequest(InvalidInput):
    code = "invalid_request"
    title = "The request is malformed"


class InvalidName(InvalidInput):
    code = "invalid_name"
    title = "Not a name that an engine can have"


class InvalidOption(InvalidInput):
    code = "invalid_option"
    title = "An option is unknown or has a value it cannot have"


class InvalidShape(InvalidInput):
    code = "invalid_shape"
    title = "A shape cannot be read or contradicts itself"


class WebhookRefused(InvalidInput):
    code = "webhook_refused"
    title = "Webhooks to this address are not allowed"


class EmptyUpload(InvalidInput):
    code = "empty_upload"
    title = "The uploaded file is empty"


class ModelRejected(InvalidInput):
    code = "model_rejected"
    title = "The upload is not a network that this service reads"


class ArchiveRejected(InvalidInput):
    code = "archive_rejected"
    title = "The calibration archive cannot be used"


class ImageRejected(InvalidInput):
    code = "image_rejected"
    title = "The image cannot be decoded"


class TensorRejected(InvalidInput):
    code = "tensor_rejected"
    title = "A tensor does not fit the engine's signature"


class RecipeMissing(InvalidInput):
    code = "recipe_missing"
    title = "The engine has no preprocessing recipe, so it cannot take images"


class PrecisionUnsupported(InvalidInput):
    code = "precision_unsupported"
    title = "The backend cannot build this precision"


class EngineRejected(InvalidInput):
    code = "engine_rejected"
    title = "The upload is not an engine that this device can run"


class EngineForeign(InvalidInput):
    code = "engine_foreign"
    title = "The uploaded engine was built for another device or runtime version"


class EngineCrashes(InvalidInput):
    code = "engine_crashes"
    title = "The process that tried the uploaded engine crashed"


class EngineHangs(InvalidInput):
    code = "engine_hangs"
    title = "The uploaded engine did not load and answer in time"


class CalibrationRequired(InvalidInput):
    code = "calibration_required"
    title = "INT8 needs calibration samples"


class BackendMissing(InvalidInput):
    code = "backend_missing"
    title = "The backend is not available on this device"


# --- not found, conflict -----------------------------------------------------------------------------------------


class RouteNotFound(NotFound):
    code = "route_not_found"
    title = "There is nothing at this address"


class ModelNotFound(NotFound):
    code = "model_not_found"
    title = "No such model"


class CalibrationNotFound(NotFound):
    code = "calibration_not_found"
    title = "No such calibration set"


class JobNotFound(NotFound):
    code = "job_not_found"
    title = "No such job"


class EngineNotFound(NotFound):
    code = "engine_not_found"
    title = "No such engine"


class JobStateConflict(Conflict):
    code = "job_state"
    title = "The job is in a state that does not allow this"


class IdempotencyConflict(Conflict):
    code = "idempotency_conflict"
    title = "The Idempotency-Key was used for another request"


class InUse(Conflict):
    code = "in_use"
    title = "Something else still needs it"


# --- size, media type ----------------------------------------------------------------------------------------------


class UploadTooLarge(TooLarge):
    code = "upload_too_large"
    title = "The upload is larger than this service accepts"


class BodyTooLarge(TooLarge):
    code = "body_too_large"
    title = "The request body is larger than this endpoint accepts"


class HeadersTooLarge(ServiceError):
    code = "headers_too_large"
    title = "The request's headers are larger than this service accepts"


class RequestTooSlow(ServiceError):
    code = "request_too_slow"
    title = "The request did not arrive in time"


class MediaTypeUnsupported(Unsupported):
    code = "media_type_unsupported"
    title = "The content type is not one that this endpoint reads"


class FeatureUnsupported(Unsupported):
    code = "feature_unsupported"
    title = "An optional part of the protocol that this service does not have"


# --- later, perhaps ------------------------------------------------------------------------------------------------


class QueueFull(Unavailable):
    code = "queue_full"
    title = "Too many requests wait for this engine"


class StreamsFull(Unavailable):
    code = "streams_full"
    title = "Too many event streams are open"
    retry_after_s = 10


class EngineTooLarge(Unavailable):
    code = "engine_too_large"
    title = "There is no room in memory for the engine"
    retry_after_s = 10


class EngineStale(Unavailable):
    code = "engine_stale"
    title = "The engine was built for another device or runtime version"
    retry_after_s = 30


class EngineDamaged(Unavailable):
    code = "engine_damaged"
    title = "The engine's file is not what was stored"
    retry_after_s = 30


class EngineUnloadable(Unavailable):
    code = "engine_unloadable"
    title = "The runtime refused to load the engine"
    retry_after_s = 30


class ConnectionsFull(Unavailable):
    code = "connections_full"
    title = "Too many connections have requests under way"


class BodiesFull(Unavailable):
    code = "bodies_full"
    title = "The bodies of other requests take the memory that there is for them"


class DiskFull(Unavailable):
    code = "disk_full"
    title = "There is not enough free disk space"
    retry_after_s = 60


class StorageUnwritable(Unavailable):
    code = "storage_unwritable"
    title = "The data folder cannot be written to"
    retry_after_s = 60


class StorageBusy(Unavailable):
    code = "storage_busy"
    title = "The job database is busy"


class DatabaseNewer(Unavailable):
    code = "database_newer"
    title = "The job database was written by a newer version"
    retry_after_s = 60


class ShuttingDown(Unavailable):
    code = "shutting_down"
    title = "The service is stopping"
    retry_after_s = 5


class RequestTimedOut(Unavailable):
    code = "request_timed_out"
    title = "The request was not answered within its own time limit"


class ExecutionFailed(RunFailed):
    code = "execution_failed"
    title = "The engine failed while it ran"


# --- access --------------------------------------------------------------------------------------------------------


class KeyMissing(Unauthorised):
    code = "key_missing"
    title = "An API key is needed"


class KeyUnknown(Unauthorised):
    code = "key_unknown"
    title = "The API key is not known"


class KeyExpired(Unauthorised):
    code = "key_expired"
    title = "The API key has expired"


class RoleMissing(Forbidden):
    code = "role_missing"
    title = "The API key lacks the role for this"


class HostRefused(Forbidden):
    code = "host_refused"
    title = "The service is not known by this name"


class CrossSiteRefused(Forbidden):
    code = "cross_site_refused"
    title = "A page of another site may not do this"


class RateLimited(TooMany):
    code = "rate_limited"
    title = "Requests come faster than this client may send them"


class TooManyUploads(TooMany):
    code = "too_many_uploads"
    title = "Too many uploads run at once"


class TooManyAttempts(TooMany):
    code = "too_many_attempts"
    title = "Too many unknown API keys came from this address"


# --- the command `jetforge keys`: printed, never answered to a request -----------------------------------------------


class InvalidKeyOptions(ServiceError):
    code = "invalid_key_options"
    title = "A key cannot be made like this"


class KeyNameTaken(ServiceError):
    code = "key_name_taken"
    title = "A key of this name exists"


class KeyNotFound(ServiceError):
    code = "key_not_found"
    title = "No such key"


# --- start-up: printed by the command, never answered to a request ---------------------------------------------------


class StartRefused(ServiceError):
    code = "start_refused"
    title = "The service cannot start like this"


class InvalidSetting(ServiceError):
    code = "invalid_setting"
    title = "A setting has a value that it cannot have"


class BackupRefused(ServiceError):
    code = "backup_refused"
    title = "The backup cannot be written or restored"


# --- builds: codes of a job's `failure` ------------------------------------------------------------------------------


class SourceDamaged(BuildFailed):
    code = "source_damaged"
    title = "A stored file has other bytes than were uploaded"


class ModelInvalid(BuildFailed):
    code = "model_invalid"
    title = "The ONNX checker refused the model"


class ModelUnsafe(BuildFailed):
    code = "model_unsafe"
    title = "The uploaded file tries to do more than compute"


class ExportFailed(BuildFailed):
    code = "export_failed"
    title = "The network could not be exported to ONNX"


class TorchMissing(BuildFailed):
    code = "torch_missing"
    title = "PyTorch is not installed on this device"


class ConfinementMissing(BuildFailed):
    code = "confinement_missing"
    title = "The system cannot confine the process that opens the model"


class OperatorUnsupported(BuildFailed):
    code = "operator_unsupported"
    title = "The model uses operators that the backend lacks"


class OpsetUnsupported(BuildFailed):
    code = "opset_unsupported"
    title = "The model's opset or IR version is not one that the backend reads"


class ExternalDataMissing(BuildFailed):
    code = "external_data_missing"
    title = "The model's weights are in files that were not uploaded"


class ModelTooLarge(BuildFailed):
    code = "model_too_large"
    title = "The model is too large for what was asked"


class DTypeUnsupported(BuildFailed):
    code = "dtype_unsupported"
    title = "An input or output has an element type that engines cannot carry"


class ShapesNeeded(BuildFailed):
    code = "shapes_needed"
    title = "The model's dynamic axes need shapes"


class ShapesContradict(BuildFailed):
    code = "shapes_contradict"
    title = "The requested shapes do not fit the model"


class PreprocessContradicts(BuildFailed):
    code = "preprocess_contradicts"
    title = "The preprocessing recipe does not fit the model's input"


class LabelsContradict(BuildFailed):
    code = "labels_contradict"
    title = "The labels do not fit the model's output"


class DynamicBatchImpossible(BuildFailed):
    code = "dynamic_batch_impossible"
    title = "The model's fixed batch cannot be made dynamic"


class FoldImpossible(BuildFailed):
    code = "fold_impossible"
    title = "The preprocessing cannot be folded into the graph"


class CalibrationTooSmall(BuildFailed):
    code = "calibration_too_small"
    title = "The calibration archive has too few usable samples"


class CalibrationMismatch(BuildFailed):
    code = "calibration_mismatch"
    title = "The calibration samples do not fit the model's inputs"


class CalibrationDegenerate(BuildFailed):
    code = "calibration_degenerate"
    title = "The calibration samples are all but equal"


class QuantiseFailed(BuildFailed):
    code = "quantise_failed"
    title = "The model could not be quantised"


class CastFailed(BuildFailed):
    code = "cast_failed"
    title = "The model could not be cast to 16-bit floats"


class CompileFailed(BuildFailed):
    code = "compile_failed"
    title = "The backend could not compile the model"


class SourceFailed(BuildFailed):
    code = "source_failed"
    title = "The uploaded model itself fails when it runs"


class AccuracyLost(BuildFailed):
    code = "accuracy_lost"
    title = "The engine's answers differ too much from the model's"


class BuildTimedOut(BuildFailed):
    code = "build_timed_out"
    title = "The build passed its time limit"


class BuildKilled(BuildFailed):
    code = "build_killed"
    title = "The build was ended by the system"


class BuildOutOfMemory(BuildFailed):
    code = "build_out_of_memory"
    title = "The build ran out of memory"


class BuildCrashed(BuildFailed):
    code = "build_crashed"
    title = "The build process ended without a result"


class WorkerLost(BuildFailed):
    code = "worker_lost"
    title = "The worker was lost too often while it built this"
