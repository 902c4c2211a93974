"""The service's JSON as tables for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]
NOTHING = "–"


def accuracy_table(engine: Json) -> Group:
    """Every output of the engine against the unmodified source model."""
    accuracy = engine["accuracy"]
    compared = f"{accuracy['samples']} {accuracy['inputs']} samples, against {accuracy['reference']}"
    if not accuracy["samples"]:
        compared = "not verified, it was uploaded as an engine"
    rows = [
        (
            output["name"],
            number(output["max_abs"], ".3g"),
            number(output["max_rel"], ".3g"),
            number(output["cosine"], ".6f"),
            number(output["sqnr_db"], ".1f"),
        )
        for output in accuracy["outputs"]
    ]
    columns = ("output", "max abs error", "max rel error", "cosine", "SQNR dB")
    return titled(f"accuracy of {engine['ref']}: {compared}", table(columns, rows))


def candidates_table(engine: Json) -> Group:
    """Everything that precision auto compared; the published one is marked."""
    published = (engine["precision"], engine["int8_method"])
    rows = []
    for candidate in engine["candidates"]:
        latency, accuracy = candidate["latency"] or {}, candidate["accuracy"] or {}
        size_bytes = candidate["size_bytes"]
        kind = (candidate["precision"], candidate["int8_method"])
        rows.append(
            (
                " ".join(filter(None, kind)) + (" *" if kind == published else ""),
                "accepted" if candidate["accepted"] else "refused",
                number(min((output["sqnr_db"] for output in accuracy.get("outputs", ())), default=None), ".1f"),
                number(accuracy.get("top1_agreement"), ".2%"),
                number((accuracy.get("labelled") or {}).get("engine"), ".2%"),
                number(latency.get("p50_ms"), ".3f"),
                number(latency.get("p99_ms"), ".3f"),
                number(latency.get("throughput_per_s"), ",.0f"),
                None if size_bytes is None else decimal(size_bytes),
                number(candidate["built_in_s"], ".1f"),
                candidate["reason"] or "",
            )
        )
    columns = (
        "engine",
        "",
        "SQNR dB",
        "top-1",
        "labels right",
        "p50 ms",
        "p99 ms",
        "rows/s",
        "size",
        "built s",
        "why not",
    )
    return titled(f"candidates for {engine['ref']} (* = published)", table(columns, rows))


def engine_table(engine: Json) -> Group:
    """What the engine is and how fast."""
    latency, signature = engine["latency"], engine["signature"]
    rows = [
        (
            "precision",
            " ".join(filter(None, (engine["precision"], engine.get("int8_method"), "on", engine["backend"]))),
        ),
        ("inputs", specs(signature["inputs"])),
        ("outputs", specs(signature["outputs"])),
        ("top-1 agreement", number(engine["accuracy"]["top1_agreement"], ".2%")),
        ("top-5 agreement", number(engine["accuracy"].get("top5_agreement"), ".2%")),
        ("labels right", labels_right(engine["accuracy"].get("labelled"))),
        ("latency p50", number(latency["p50_ms"], ".3f", " ms")),
        ("latency p99", number(latency["p99_ms"], ".3f", " ms")),
        ("throughput", number(latency["throughput_per_s"], ",.0f", f" rows/s in runs of {latency['rows']}")),
        ("size", decimal(engine["size_bytes"])),
        ("built in", number(engine["built_in_s"], ".1f", " s")),
        ("warm", warmth(engine.get("warm"))),
    ]
    return titled(f"engine {engine['ref']}", pairs(rows))


def engines_table(engines: Iterable[Json]) -> Table:
    rows = [
        (
            engine["ref"],
            engine["precision"],
            engine["backend"],
            decimal(engine["size_bytes"]),
            number(engine["accuracy"]["top1_agreement"], ".2%"),
            number(min((output["sqnr_db"] for output in engine["accuracy"]["outputs"]), default=None), ".1f"),
            number(engine["latency"]["p50_ms"], ".3f"),
            number(engine["latency"]["throughput_per_s"], ",.0f"),
            warmth(engine.get("warm")),
        )
        for engine in engines
    ]
    columns = ("engine", "precision", "backend", "size", "top-1", "SQNR dB", "p50 ms", "rows/s", "warm")
    return table(columns, rows)


def memory_line(memory: Json) -> str:
    return f"Warm engines hold {decimal(memory['used_bytes'])} of {decimal(memory['budget_bytes'])}."


def jobs_table(jobs: Iterable[Json]) -> Table:
    rows = [
        (
            job["id"],
            job["name"],
            job["state"],
            job["stage"],
            str(job["attempt"]),
            job["engine"] or (job["failure"] or {}).get("code"),
            job["created_at"],
        )
        for job in jobs
    ]
    return table(("job", "name", "state", "stage", "attempt", "engine, or failure", "created"), rows)


def job_table(job: Json) -> Group:
    failure = job["failure"] or {}
    rows = [
        ("name", job["name"]),
        ("state", job["state"] + (", the engine existed" if job["reused"] else "")),
        ("stage", job["stage"]),
        ("attempt", str(job["attempt"])),
        ("engine", job["engine"]),
        ("model", job["model"]),
        ("calibration", job["calibration"]),
        ("created", job["created_at"]),
        ("started", job["started_at"]),
        ("finished", job["finished_at"]),
        ("elapsed", number(job.get("elapsed_s"), ".1f", " s")),
        ("estimated", number(job.get("estimated_s"), ".0f", " s, as builds like it took")),
        ("failure", failure.get("code")),
    ]
    return titled(f"job {job['id']}", pairs(rows))


def predictions_table(images: Sequence[str], predictions: Sequence[Sequence[Json]]) -> Table:
    """The likeliest classes of each image, the first beside its name."""
    rows = []
    for image, classes in zip(images, predictions, strict=True):
        for rank, found in enumerate(classes):
            label = found.get("label")
            named = str(found["index"] if label is None else label)
            rows.append(("" if rank else image, named, number(found.get("probability"), ".2%")))
    return table(("image", "label", "probability"), rows)


def outputs_table(outputs: Json) -> Table:
    rows = [
        (name, output["dtype"], "x".join(map(str, output["shape"])), _shortened(output["data"]))
        for name, output in outputs.items()
    ]
    return table(("output", "dtype", "shape", "values"), rows)


def backends_table(backends: Iterable[Json]) -> Table:
    rows = []
    for backend in backends:
        facts = backend.get("facts") or {}
        rows.append(
            (
                backend["name"],
                "ready" if backend["available"] else "missing",
                backend.get("version") or facts.get("backend_version"),
                _text(backend.get("precisions")),
                " ".join(filter(None, (backend.get("missing"), backend.get("hint")))),
            )
        )
    return table(("backend", "", "version", "precisions", "what is missing, and the fix"), rows)


def facts_table(device: Json) -> Table:
    """The rest of GET /device: everything but the backends, one line a fact."""
    rows = [(name, _text(value)) for name, value in _flat(device) if value is not None]
    return pairs(rows)


def _flat(facts: Json, part: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{part}{name} ")
        elif name != "backends":
            yield part + name.replace("_mib", " MiB").replace("_", " "), value


def keys_table(keys: Sequence[Json]) -> Table:
    """API keys, in the order in which they were made."""
    rows = [
        (
            key["name"],
            key["state"],
            ", ".join(key["roles"]),
            key["created_at"],
            key["last_used_at"],
            key["expires_at"],
            key["id"],
        )
        for key in keys
    ]
    return table(("name", "state", "roles", "created", "last used", "expires", "id"), rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[str | None]], show_header: bool = True) -> Table:
    """A table of plain text: names from outside are never read as markup."""
    made = Table(*columns, show_header=show_header)
    for row in rows:
        made.add_row(*(Text(cell or NOTHING) if cell != "" else "" for cell in row))
    return made


def pairs(rows: Iterable[tuple[str, str | None]]) -> Table:
    return table(("", ""), rows, show_header=False)


def titled(title: str, body: Table) -> Group:
    """The title on a line of its own: rich's own titles are broken to the width of the table."""
    return Group(Text(title), body)


def specs(tensors: Iterable[Json]) -> str:
    """As in `image float32 -1x1x8x8`."""
    return ", ".join(f"{spec['name']} {spec['dtype']} {'x'.join(map(str, spec['shape']))}".strip() for spec in tensors)


def number(value: float | None, form: str, unit: str = "") -> str:
    """The formatted number; a dash when there is none, as for infinities, which JSON cannot hold."""
    return NOTHING if value is None else format(value, form) + unit


def labels_right(labelled: Json | None) -> str | None:
    """As in `99.2%, source 99.2%, of 60 samples`."""
    if labelled is None:
        return None
    return f"{labelled['engine']:.1%}, source {labelled['source']:.1%}, of {labelled['samples']} samples"


def warmth(warm: Json | None) -> str:
    if not warm:
        return "no"
    requests = warm["requests"]
    return f"{warm['state']}, {decimal(warm['device_bytes'])}, {requests} request{'' if requests == 1 else 's'}"


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _shortened(data: Any) -> str:
    text = str(data)
    return text if len(text) <= 100 else text[:100] + "…"
