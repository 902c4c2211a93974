"""What the generated OpenAPI document cannot see: bodies that stream past the framework."""

from __future__ import annotations

from typing import Any

from app.api.options import OptionsSchema
from app.domain.builds import Precision

_BINARY = {"type": "string", "format": "binary"}


_KEPT = ("description", "default", "examples", "enum", "minimum", "maximum", "exclusiveMinimum")


def _option_fields() -> dict[str, Any]:
    """The options as a form sends them: text, or what is written as text without loss."""
    schema = OptionsSchema.model_json_schema()
    return {name: _form_field(field, schema["$defs"]) for name, field in schema["properties"].items()}


def _form_field(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    chosen = field.get("anyOf", [field])[0]  # the other is null: the field is left out
    found = {**definitions.get(chosen.get("$ref", "").rpartition("/")[2], chosen), **field}
    kind = found.get("type")
    if kind not in ("boolean", "integer", "number", "string"):
        return {"type": "string", **{key: found[key] for key in ("description", "examples") if key in found}}
    kept = {key: found[key] for key in _KEPT if found.get(key) is not None}
    if "enum" in kept:
        kept["enum"] = [value for value in kept["enum"] if value != Precision.UNKNOWN]  # of uploaded engines only
    return {"type": kind, **kept}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


def _form(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required}
    return {"multipart/form-data": {"schema": schema}}


JOB_FORM = _body(
    _form(
        {
            "name": {"type": "string", "description": "of the engine: a-z, 0-9, '.', '_', '-'"},
            "model": {
                **_BINARY,
                "description": "the network: .onnx, a zip or tar of one with its weights, TorchScript or .pt2",
            },
            "model_id": {"type": "string", "description": "instead of model: id of a stored one"},
            "calibration": {**_BINARY, "description": "zip of images like those seen in use; int8 and auto use them"},
            "calibration_id": {"type": "string", "description": "instead of calibration: id of a stored one"},
            "webhook": {"type": "string", "description": "URL that is told of the job's end; empty: none"},
            "options": {"type": "string", "description": "options as one JSON object; single fields win"},
            **_option_fields(),
        },
        ["name"],
    )
)
_RAW = {"application/octet-stream": {"schema": _BINARY}}
MODEL_BODY = _body({**_form({"model": _BINARY}, ["model"]), **_RAW})
CALIBRATION_BODY = _body({**_form({"calibration": _BINARY}, ["calibration"]), **_RAW})
ENGINE_FORM = _body(
    {
        **_form(
            {
                "file": {**_BINARY, "description": "a TensorRT engine, or .onnx or .ort for ONNX Runtime"},
                "name": {"type": "string", "description": "of the engine: a-z, 0-9, '.', '_', '-'"},
                **{name: _option_fields()[name] for name in ("backend", "preprocess", "labels")},
            },
            ["file", "name"],
        ),
        **_RAW,
    }
)
INFER_BODY = _body(
    {
        "image/jpeg": {"schema": _BINARY},
        "image/png": {"schema": _BINARY},
        "image/bmp": {"schema": _BINARY},
        "image/webp": {"schema": _BINARY},
        **_form({"image": {"type": "array", "items": _BINARY}}, ["image"]),
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {"inputs": {"description": "nested lists by input name, or of the only input"}},
            }
        },
        "application/x-npy": {"schema": _BINARY},
        "application/x-npz": {"schema": _BINARY},
        **_RAW,
    }
)


def _answer(description: str, *media_types: str) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"description": description, "content": {media_type: {"schema": _BINARY} for media_type in media_types}}
    }


INFER_ANSWER = _answer(
    "Predictions and outputs; as Accept asks", "application/x-npz", "application/x-npy", "application/octet-stream"
)
FILE_ANSWER = _answer("The engine file", "application/octet-stream")
EVENTS_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {"schema": {}}}}
}
V2_INFER_BODY = _body(
    {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {"inputs": {"type": "array", "items": {"type": "object"}}},
            }
        },
        **_RAW,
    }
)
V2_INFER_ANSWER = _answer("The outputs, in JSON or behind a JSON header", "application/octet-stream")
