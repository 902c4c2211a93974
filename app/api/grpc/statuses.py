"""Every exception becomes a gRPC status here, and nowhere else."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass

from grpc import StatusCode

from app.domain import errors

log = logging.getLogger(__name__)

_MESSAGE_BYTES_MAX = 2000  # it travels in a header, percent-encoded; clients refuse headers of more than 8 KiB
_STATUS: dict[type[errors.ServiceError], StatusCode] = {
    errors.RequestTimedOut: StatusCode.DEADLINE_EXCEEDED,
    errors.InvalidInput: StatusCode.INVALID_ARGUMENT,
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.Conflict: StatusCode.FAILED_PRECONDITION,
    errors.TooLarge: StatusCode.RESOURCE_EXHAUSTED,
    errors.Unsupported: StatusCode.UNIMPLEMENTED,
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.Unauthorised: StatusCode.UNAUTHENTICATED,
    errors.Forbidden: StatusCode.PERMISSION_DENIED,
    errors.TooMany: StatusCode.RESOURCE_EXHAUSTED,
}


@dataclass(frozen=True)
class Status:
    code: StatusCode
    message: str
    metadata: tuple[tuple[str, str], ...] = ()  # trailing


def status_of(error: Exception, method: str) -> Status:
    """The status that answers this exception; faults of the service itself are written to the log."""
    if not isinstance(error, errors.ServiceError):
        incident = secrets.token_hex(4)
        log.error("unexpected error", extra={"method": method, "incident": incident}, exc_info=error)
        return Status(
            StatusCode.INTERNAL, f"An unexpected error happened (incident {incident}). See the log. [internal_error]"
        )
    code = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), StatusCode.INTERNAL)
    if code is StatusCode.INTERNAL:
        log.error("request failed", extra={"method": method, "code": error.code}, exc_info=error)
    metadata: tuple[tuple[str, str], ...] = ()
    if isinstance(error, errors.TooMany) or (code is StatusCode.UNAVAILABLE and isinstance(error, errors.Unavailable)):
        metadata = (("retry-after", str(error.retry_after_s)),)
    return Status(code, _message(error), metadata)


def _message(error: errors.ServiceError) -> str:
    text = f"{error.detail} {error.hint}".strip().encode()[:_MESSAGE_BYTES_MAX].decode(errors="ignore")
    return f"{text} [{error.code}]"
