"""Figures measured before on the same device, and whether the new ones keep up with them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

Figures: TypeAlias = Mapping[str, Mapping[str, float]]  # "resnet18 fp16" → name → value

# name → (factor, slack): a found value may be as large as the known one · factor + slack.
_AT_MOST = {
    "build_s": (2.0, 10.0),
    "engine_p50_ms": (1.25, 0.05),
    "http_tensor_p50_ms": (1.5, 0.3),
    "http_jpeg_p50_ms": (1.5, 0.5),
    "resident_mib": (1.25, 50.0),
    "device_mib": (1.25, 16.0),
}
_AT_LEAST = {"sqnr_db": 3.0}  # name → by how much a found value may be smaller


def known_figures(page: Path, device: str, backend: str) -> Figures:
    """The figures of this device in a Markdown page; none where it has none, or is not there.

    They stand in blocks of JSON, ```json … ```, each an object (or a list of objects) with `device`, `backend` and
    `figures`; a report of device-acceptance is such an object. Other blocks are passed over.
    """
    found: dict[str, Mapping[str, float]] = {}
    text = page.read_text() if page.exists() else ""
    for block in re.findall(r"^```json\n(.*?)^```", text, re.M | re.S):
        for entry in _entries(block):
            if (entry["device"], entry.get("backend", backend)) == (device, backend):
                found.update(entry["figures"])
    return found


def shortfalls(found: Mapping[str, float | None], known: Mapping[str, float]) -> list[str]:
    """Where the new figures are worse than the known ones allow. What either side lacks is not compared."""
    worse = []
    for name, (factor, slack) in _AT_MOST.items():
        new, old = found.get(name), known.get(name)
        if new is not None and old is not None and new > old * factor + slack:
            worse.append(f"{name} {new:.3g}, was {old:.3g} (up to {old * factor + slack:.3g} passes)")
    for name, slack in _AT_LEAST.items():
        new, old = found.get(name), known.get(name)
        if new is not None and old is not None and new < old - slack:
            worse.append(f"{name} {new:.3g}, was {old:.3g} (from {old - slack:.3g} passes)")
    return worse


def _entries(block: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(block)
    except ValueError:
        return []
    entries = value if isinstance(value, list) else [value]
    return [
        entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("device"), str) and isinstance(entry.get("figures"), dict)
    ]
