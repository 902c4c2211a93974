"""The OpenAPI document: what FastAPI derives from the routes, completed by what holds for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from app.access.routes import Rule, rule_of
from app.api.problems import MEDIA_TYPE

Json = dict[str, Any]

PROBLEM: Json = {
    "title": "Problem",
    "description": "RFC 9457; docs/errors.md describes the codes.",
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "hint", "error"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {"type": "string", "pattern": "^[a-z0-9_]+$"},
        "detail": {"type": "string", "description": "what was found and what was wanted"},
        "hint": {"type": "string", "description": "what to do"},
        "error": {"type": "string", "description": "both, for clients of the Open Inference Protocol"},
    },
}
SECURITY: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
# The form of parameters that the routes check themselves, with errors of their own.
NAME = "[a-z0-9][a-z0-9._-]{0,63}"
DIGEST = "^sha256:[0-9a-f]{64}$"
PATTERNS = {
    "ref": f"^{NAME}(:[1-9][0-9]{{0,8}})?$",
    "model": f"^{NAME}$",
    "version": "^[1-9][0-9]{0,8}$",
    "job_id": "^[0-9a-f]{16}$",
    "model_id": DIGEST,
    "calibration_id": DIGEST,
}
QUERY_PATTERNS = {
    ("/jobs", "after"): "^[0-9a-f]{16}$",
    ("/models", "after"): DIGEST,
    ("/calibrations", "after"): DIGEST,
    ("/engines", "after"): f"^{NAME}:[1-9][0-9]{{0,8}}$",
    ("/infer/{ref}", "shape"): "^[0-9]{1,9}(x[0-9]{1,9}){0,15}$",
}
ALWAYS = (400, 404, 405, 408, 413, 431, 500, 503)  # a body may be sent to any address
GUARDED = (401, 403, 429)
V2 = (501,)


class DocumentedApp(FastAPI):
    """The application with its document completed."""

    def openapi(self) -> Json:
        if self.openapi_schema is None:
            _complete(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema


def _complete(document: Json) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # what FastAPI would answer, and we do not
        schemas.pop(name, None)
    schemas["Problem"] = PROBLEM
    document["components"]["securitySchemes"] = SECURITY
    for method, path, operation in _operations(document):
        rule = rule_of(method, path)
        _describe_access(operation, rule)
        for parameter in operation.get("parameters", ()):
            _give_pattern(path, parameter)
        operation["responses"].pop("422", None)
        for status in _problem_statuses(rule, operation):
            operation["responses"][str(status)] = _problem_response(status)
        if method == "GET" and "application/json" in operation["responses"].get("200", {}).get("content", {}):
            operation["responses"]["304"] = {"description": "Nothing has changed since the ETag that was sent"}


def _give_pattern(path: str, parameter: Json) -> None:
    name = parameter["name"]
    pattern = PATTERNS.get(name) if parameter["in"] == "path" else QUERY_PATTERNS.get((path, name))
    if pattern is None:
        return
    schema = parameter["schema"]
    text = next((choice for choice in schema.get("anyOf", ()) if choice.get("type") == "string"), schema)
    text["pattern"] = pattern


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def _describe_access(operation: Json, rule: Rule) -> None:
    if rule.is_open:
        return
    operation["security"] = [{"bearer": []}, {"header": []}]
    roles = ", ".join(sorted(role.value for role in rule.roles))
    operation["description"] = f"{operation.get('description', '')}\n\nRoles: {roles}.".strip()


def _problem_statuses(rule: Rule, operation: Json) -> Iterator[int]:
    yield from ALWAYS
    if not rule.is_open:
        yield from GUARDED
    if rule.path.startswith("/v2"):
        yield from V2
    elif operation.get("parameters") or "requestBody" in operation:
        yield 422
    if rule.changes:
        yield 409
    if "requestBody" in operation:
        yield 415


def _problem_response(status: int) -> Json:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
