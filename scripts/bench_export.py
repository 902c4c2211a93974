"""What it costs to export ResNet-18 (random weights, 224×224) from PyTorch and to simplify it: the child processes.

Each step is measured by a process of its own, as the system tells the peak memory of all children together.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

ROUNDS = 3
SIDE = 224


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(f"ResNet-18, {SIDE}×{SIDE}; the median of {ROUNDS} rounds, the largest memory\n")
        print("| step | time | peak memory of its process |\n|---|---|---|")
        for kind in ("traced.pt", "scripted.pt", "program.pt2"):
            subprocess.run([sys.executable, "-m", __spec__.name, "save", folder, kind], check=True)
            _tell(f"export, {kind}", "export", folder, kind)
            _tell(f"simplify what came of {kind}", "simplify", folder, kind)


def _tell(name: str, *step: str) -> None:
    command = [sys.executable, "-m", __spec__.name, *step]
    found = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for _ in range(ROUNDS)
    ]
    seconds, mib = statistics.median(one["seconds"] for one in found), max(one["mib"] for one in found)
    print(f"| {name} | {seconds:.1f} s | {mib} MiB |", flush=True)


def save(folder: Path, kind: str) -> None:
    networks = import_module("tests.torch_networks")  # imports torch
    network, example = networks.seeded(networks.ResNet18), networks.torch.zeros(2, 3, SIDE, SIDE)
    if kind == "scripted.pt":
        networks.scripted(network, folder)
    else:
        (networks.traced if kind == "traced.pt" else networks.program)(network, folder, example)


def export(folder: Path, kind: str) -> None:
    from app.build.export import to_onnx
    from app.domain.builds import BuildOptions, ModelFormat

    format = ModelFormat.PT2 if kind.endswith(".pt2") else ModelFormat.TORCHSCRIPT
    options = BuildOptions(max_shapes={"": (8, 3, SIDE, SIDE)})
    _measured(lambda: to_onnx(folder / kind, format, folder / f"{kind}.onnx", options, _Silent()))


def simplify(folder: Path, kind: str) -> None:
    command = [sys.executable, "-m", "app.build.simplifier", str(folder / f"{kind}.onnx"), str(folder / "simple.onnx")]
    _measured(lambda: subprocess.run(command, check=True))


def _measured(work: Callable[[], object]) -> None:
    started = time.monotonic()
    work()
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"seconds": time.monotonic() - started, "mib": peak_kib // 1024}))


class _Silent:
    def step(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        {"save": save, "export": export, "simplify": simplify}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
