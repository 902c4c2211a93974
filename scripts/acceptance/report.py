"""The report to send back: as JSON for programs, as Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from acceptance.result import Result

_COLUMNS = (  # heading, figure, decimals
    ("build s", "build_s", 1),
    ("file MiB", "size_mib", 1),
    ("SQNR dB", "sqnr_db", 1),
    ("engine p50 ms", "engine_p50_ms", 3),
    ("p99", "engine_p99_ms", 3),
    ("HTTP tensor p50 ms", "http_tensor_p50_ms", 3),
    ("p99", "http_tensor_p99_ms", 3),
    ("HTTP JPEG p50 ms", "http_jpeg_p50_ms", 3),
    ("p99", "http_jpeg_p99_ms", 3),
    ("cold ms", "cold_ms", 0),
    ("server RSS MiB", "resident_mib", 0),
    ("engine MiB", "device_mib", 0),
    ("GPU used MiB", "gpu_mib", 0),
)


def as_document(
    results: Sequence[Result], device_report: dict[str, Any], backend: str, asked: dict[str, Any], compared: str
) -> dict[str, Any]:
    """All that was found. Its `device`, `backend` and `figures` are the block that docs/gpu.md can hold.

    Args:
        device_report: as GET /device answers.
        asked: the options of the run.
        compared: what the figures were compared with, in words.
    """
    facts = next(entry["facts"] for entry in device_report["backends"] if entry["name"] == backend)
    return {
        "passed": all(result.passed for result in results),
        "made_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": facts["device"],
        "backend": backend,
        "facts": facts,
        "asked": asked,
        "compared": compared,
        "figures": {result.name: result.figures for result in results if result.figures},
        "results": [{**asdict(result), "passed": result.passed} for result in results],
        "device_report": device_report,
    }


def write(document: dict[str, Any], results: Sequence[Result], folder: Path) -> tuple[Path, Path]:
    """Write report.json and report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_markdown = folder / "report.json", folder / "report.md"
    as_json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    as_markdown.write_text(markdown(document, results))
    return as_json, as_markdown


def markdown(document: dict[str, Any], results: Sequence[Result]) -> str:
    facts, device = document["facts"], document["device_report"]
    lines = [
        f"# Device acceptance: {'passed' if document['passed'] else 'FAILED'}",
        "",
        f"- Device: {facts['device']} ({facts['architecture']})",
        f"- Backend: {facts['backend']} {facts['backend_version']},"
        f" compute capability {facts['compute_capability'] or '–'}, L4T {facts['l4t'] or '–'}",
        f"- System: {device['system']}, Python {device['python']}, jetforge {device['jetforge']},"
        f" {device['cpus']} processors, {device['memory_total_mib']} MiB",
        f"- Made: {document['made_at']} with {json.dumps(document['asked'])}",
        f"- Figures: {document['compared']}",
        "",
        *_table(["engine", *(heading for heading, _, _ in _COLUMNS)], [_row(result) for result in results]),
        "",
        "SQNR: against the uploaded network in ONNX Runtime, through /infer, on pictures that no calibration saw."
        " Engine: host to host, as its record has it. HTTP: one client on loopback, one row.",
        "",
        "## Checks",
        "",
        *_table(["engine", "check", "", "found"], [row for result in results for row in _checks(result)]),
    ]
    warnings = [f"- {result.name}: {_cell(text)}" for result in results for text in result.details.get("warnings", [])]
    return "\n".join([*lines, *(["", "## Warnings of the builds", "", *warnings] if warnings else []), ""])


def _row(result: Result) -> list[str]:
    values = ((result.figures.get(name), decimals) for _, name, decimals in _COLUMNS)
    return [result.name, *("–" if value is None else f"{value:.{decimals}f}" for value, decimals in values)]


def _checks(result: Result) -> list[list[str]]:
    return [
        [result.name, check.name, "passed" if check.passed else "**FAILED**", check.found] for check in result.checks
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(map(_cell, row))} |" for row in rows),
    ]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
