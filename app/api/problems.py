"""Every exception becomes RFC 9457 problem+json here, and nowhere else. `error` is what Open Inference clients read."""

from __future__ import annotations

import logging
import secrets
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.access.routes import methods_at
from app.api.responses import json_response
from app.domain import errors
from app.logs import request_id

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_VALUE_CHARS = 80  # of a refused value, in the answer
CLIENT_CLOSED = 499  # nobody reads it: the connection has gone

STATUS: dict[type[errors.ServiceError], int] = {
    errors.InvalidInput: 422,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.Unsupported: 415,
    errors.Unavailable: 503,
    errors.RunFailed: 500,
    errors.Unauthorised: 401,
    errors.Forbidden: 403,
    errors.TooMany: 429,
    errors.RequestTooSlow: 408,
    errors.HeadersTooLarge: 431,
}


def install(app: FastAPI) -> None:
    """Make the application answer every failure as a problem."""
    app.add_exception_handler(errors.ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _bug)


def problem(
    status: int, code: str, title: str, detail: str, hint: str, headers: dict[str, str] | None = None
) -> Response:
    body = {
        "type": f"/docs/errors#{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
        "hint": hint,
        "error": f"{detail} {hint}".strip(),
        "request_id": request_id.get(),
    }
    return json_response(body, status=status, media_type=MEDIA_TYPE, headers=headers)


def status_of(error: errors.ServiceError) -> int:
    """The status of the error's family; 500 for one that should never have left a build."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def problem_of(error: errors.ServiceError) -> Response:
    return problem(status_of(error), error.code, error.title, error.detail, error.hint, _headers_of(error))


def _headers_of(error: errors.ServiceError) -> dict[str, str]:
    if isinstance(error, (errors.Unavailable, errors.TooMany)):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, errors.Unauthorised):
        was_shown = not isinstance(error, errors.KeyMissing)
        return {"WWW-Authenticate": 'Bearer realm="jetforge"' + (', error="invalid_token"' if was_shown else "")}
    return {}


def answer_to(error: Exception, path: str) -> Response:
    """The answer to a request that failed, whatever with; what is the service's own fault is written to the log."""
    if not isinstance(error, errors.ServiceError):
        return _defect(error, path)
    if status_of(error) == 500:
        # One line: clients may make an engine fail as often as they like.
        log.error("request failed", extra={"path": path, "code": error.code, "detail": error.detail})
    return problem_of(error)


async def _service_error(request: Request, error: Exception) -> Response:
    return answer_to(error, request.url.path)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_of(errors.InvalidRequest(described(error.errors()), hint="Compare the request with /docs."))


def described(found: Any) -> str:
    """What a validator found, one line: `limit: Input should be less than or equal to 500, not '501'; …`."""
    parts = []
    for item in found[:5]:
        place = ".".join(str(step) for step in item["loc"] if step not in ("query", "path", "body", "header"))
        words = f"{_words(item)}{_value(item)}"
        parts.append(f"{place}: {words}" if place else words)
    return "; ".join(parts) + "."


def _words(item: Any) -> str:
    """The validator's words, where those are not about its own classes."""
    if item["type"] == "extra_forbidden":
        return "there is no such field"
    if item["type"] in ("model_type", "model_attributes_type"):
        return "Input should be a JSON object"
    return str(item["msg"]).removeprefix("Value error, ")


def _value(item: Any) -> str:
    """The value that was refused, unless the words show it or it is the whole body."""
    value = item.get("input")
    if item["type"] == "extra_forbidden" or not isinstance(value, (str, int, float)):
        return ""
    shown = repr(value[:_VALUE_CHARS]) if isinstance(value, str) else repr(value)[:_VALUE_CHARS]
    return "" if shown in item["msg"] else f", not {shown}"


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return problem_of(
            errors.RouteNotFound(f"Nothing answers at {request.url.path[:200]}.", hint="/docs lists what there is.")
        )
    if error.status_code == 400 and request.method != "GET":  # FastAPI's, for JSON that its parser cannot even refuse
        return problem_of(errors.InvalidRequest("The body cannot be read as JSON.", hint="Send it as UTF-8 text."))
    phrase = HTTPStatus(error.status_code).phrase
    code = "method_not_allowed" if error.status_code == 405 else "http_error"
    detail = (
        f"{request.method} is not possible at {request.url.path[:200]}." if code == "method_not_allowed" else phrase
    )
    headers, hint = dict(error.headers or {}), "/docs lists what there is."
    if error.status_code == 405 and (methods := methods_at(request.url.path)):
        headers["Allow"] = ", ".join(methods)  # the router names those of the first route only
        hint = f"It takes {headers['Allow']}; {hint}"
    return problem(error.status_code, code, phrase, detail, hint, headers)


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


async def _bug(request: Request, error: Exception) -> Response:
    response = _defect(error, request.url.path)
    response.headers["X-Request-ID"] = request_id.get()  # outside of `Observed`, which adds it to all others
    return response


def _defect(error: Exception, path: str) -> Response:
    incident = secrets.token_hex(4)
    log.error("unexpected error", extra={"path": path, "incident": incident}, exc_info=error)
    return problem(
        500,
        "internal_error",
        "The service has a defect",
        f"An unexpected error happened (incident {incident}).",
        "The service's log has the details under that number; please report them.",
    )
