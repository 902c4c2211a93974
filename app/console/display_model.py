"""What a stored network holds, as a table for a person."""

from __future__ import annotations

from rich.console import Group
from rich.filesize import decimal

from app.console.display import Json, number, pairs, specs, titled
from app.console.hints import typed


def model_table(model: Json) -> Group:
    """The network and what was found in it."""
    facts = model["facts"] or {}
    operators = sorted(facts.get("operators", {}).items(), key=lambda entry: -entry[1])
    rows = [
        ("id", model["id"]),
        ("format", model["format"]),
        ("size", decimal(model["size_bytes"])),
        ("inputs", specs(facts.get("inputs", ()))),
        ("outputs", specs(facts.get("outputs", ()))),
        ("opset", number(facts.get("opset"), "d")),
        ("parameters", number(facts.get("parameters"), ",")),
        ("operators", ", ".join(f"{name} {count}×" for name, count in operators)),
    ]
    return titled(f"model {model['name']}", pairs([(name, text or None) for name, text in rows]))


def remarks(model: Json) -> list[str]:
    """What stands against a build, or what it has to be told; a line each."""
    if model["inspection"] == "pending":
        return [f"It is still being looked into: GET /models/{model['id']} tells when that is done."]
    if failure := model["failure"]:
        return [
            f"A build would fail: {failure['message']} [{failure['code']}]",
            f"What to do: {typed(failure['hint'])}",
        ]
    facts = model["facts"]
    told = [f"{backend} cannot build it: {reason}" for backend, reason in facts["refused_by"].items()]
    if facts["needs_shapes"]:
        told.append(f"The build has to be told the shapes of: {', '.join(facts['needs_shapes'])}.")
    return told + ([typed(facts["hint"])] if facts["hint"] else [])
