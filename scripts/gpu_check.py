"""The TensorRT backend and the service on a real GPU: every part proves something and measures it.

contract: the backend suite with TensorRT required. engines: ResNet-18 and digits in every precision against ONNX
Runtime, latency beside a bare TensorRT loop, damage, 200 loads. service: the same through HTTP.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PARTS = ("contract", "engines", "service")

Section = dict[str, Any]


def contract(asked: argparse.Namespace, folder: Path) -> Section:
    """The suite that every backend passes, with TensorRT required."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "tensorrt", "-p", "no:cacheprovider", "tests/contract"]
    started = time.monotonic()
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "JETFORGE_REQUIRE_TENSORRT": "1"},
        capture_output=True,
        text=True,
        timeout=asked.contract_timeout,
        check=False,
    )
    lines = ran.stdout.splitlines()
    failed = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    if ran.returncode != 0:
        print(ran.stdout[-8000:], ran.stderr[-2000:], file=sys.stderr)
    return {
        "passed": ran.returncode == 0,
        "summary": lines[-1] if lines else "pytest said nothing",
        "failed": failed,
        "seconds": round(time.monotonic() - started, 1),
        "status": ran.returncode,
    }


def engines(asked: argparse.Namespace, folder: Path) -> Section:
    from gpu_engines import checked

    return checked(folder, cycles=asked.cycles, quick=asked.quick)


def service(asked: argparse.Namespace, folder: Path) -> Section:
    from gpu_service import checked

    return checked(folder, cycles=asked.cycles, quick=asked.quick, seconds=asked.load_seconds)


def main(arguments: list[str] | None = None) -> int:
    asked = _parsed(arguments)
    report: dict[str, Section] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        for name in asked.parts:
            print(f"— {name} —", file=sys.stderr, flush=True)
            report[name] = _ran(globals()[name], asked, Path(folder))
            _write(asked.out, report)  # also what a later part breaks off
    print(markdown(report))
    return 0 if all(section["passed"] for section in report.values()) else 1


def markdown(report: dict[str, Section]) -> str:
    """The report for a person: lists of rows become tables, the rest lines."""
    lines = ["# gpu-check"]
    for part, section in report.items():
        lines += ["", f"## {part}: {'passed' if section['passed'] else 'FAILED'}", ""]
        for name, value in section.items():
            lines += _described(name, value)
    return "\n".join(lines)


def _described(name: str, value: Any) -> list[str]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        columns = list(dict.fromkeys(key for row in value for key in row))
        rows = [[_cell(row.get(column)) for column in columns] for row in value]
        table = [columns, ["---"] * len(columns), *rows]
        return ["", f"**{name.replace('_', ' ')}**", "", *(f"| {' | '.join(row)} |" for row in table), ""]
    if isinstance(value, str) and "\n" in value:
        return ["", f"{name}:", "", "```", value.strip(), "```", ""]
    return [f"- {name.replace('_', ' ')}: {_cell(value)}"]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")


def _ran(part: Callable[[argparse.Namespace, Path], Section], asked: argparse.Namespace, folder: Path) -> Section:
    """A part that breaks off fails and leaves the others their turn."""
    place = folder / part.__name__
    place.mkdir()
    try:
        return part(asked, place)
    except Exception:
        return {"passed": False, "broke_off": traceback.format_exc()[-6000:]}


def _write(out: Path | None, report: dict[str, Section]) -> None:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu-check.json").write_text(json.dumps(report, indent=1, default=str), encoding="utf-8")
        (out / "gpu-check.md").write_text(markdown(report), encoding="utf-8")


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/gpu-check", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help=f"of {','.join(PARTS)}; all by default")
    parser.add_argument("--cycles", type=int, default=200, help="loads and unloads of the soak")
    parser.add_argument("--quick", action="store_true", help="fewer precisions and shorter loops")
    parser.add_argument("--load-seconds", type=float, default=4.0, help="of each load by 8 clients")
    parser.add_argument("--contract-timeout", type=float, default=540.0, help="of the contract suite, in seconds")
    out = os.environ.get("OUT")
    parser.add_argument("--out", type=Path, default=Path(out) if out else None, help="folder of the JSON; $OUT")
    return parser.parse_args(arguments)


def _parts(text: str) -> list[str]:
    parts = [part for part in text.split(",") if part]
    unknown = set(parts) - set(PARTS)
    if unknown or not parts:
        raise argparse.ArgumentTypeError(f"{text!r}: choose among {', '.join(PARTS)}")
    return parts


if __name__ == "__main__":
    sys.exit(main())
