"""Engines on a real GPU, without the service: accuracy, latency, memory, damage."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bare_loop import BareLoop
from gpu_networks import Network, digits, resnet18

from app.backends import registry
from app.backends.base import LoadedEngine
from app.backends.tensorrt.backend import TensorRT
from app.build.graph import described_source
from app.build.quantise import Quantiser
from app.build.shapes import run_shapes
from app.domain.builds import BuildOptions, Int8Method, Placement, Precision, Ranging
from app.domain.errors import ServiceError
from app.domain.tensors import Tensor
from tests.service import resident_bytes

ROOT = Path(__file__).parents[1]
# Least SQNR against ONNX Runtime in dB, by precision: what the formats allow, with some room.
FLOORS = {"fp32": 80.0, "tf32": 45.0, "fp16": 35.0, "int8": 12.0}


class Told:
    """The build's lines, on stderr with the time."""

    def step(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}   {text}", file=sys.stderr, flush=True)

    warn = step


@dataclass(frozen=True)
class Kind:
    name: str
    options: BuildOptions
    is_quantised: bool = False  # Q/DQ nodes in the graph

    @property
    def floor_db(self) -> float:
        return FLOORS["tf32" if self.options.tf32 else self.options.precision.value]


def checked(folder: Path, *, cycles: int, quick: bool) -> dict[str, Any]:
    backend = TensorRT(contexts=2)
    plain = TensorRT(contexts=2, records=False)
    problems: list[str] = []
    rows: list[dict[str, Any]] = []
    for network in (resnet18(folder), digits()):
        reference = answers(registry.backend("onnxruntime").load(network.model), network)
        for kind in kinds(backend, quick):
            row, engine = measured(backend, plain, network, kind, reference, folder)
            rows.append(row)
            if engine is None or row["sqnr_db"] < kind.floor_db:
                problems.append(f"{network.name} {kind.name}: {row}")
    problems += int8_problems(rows)
    report: dict[str, Any] = {"facts": str(backend.facts()), "engines": rows}
    resnet = folder / "resnet18-fp16.trt"
    if resnet.exists():
        soaked = soak(backend, resnet, cycles)
        report |= {"throughput": throughput(backend, resnet), "soak": [soaked], "damage": damaged(resnet, folder)}
        problems += [
            f"damage {case['damage']}: {case['answer']}" for case in report["damage"] if not case["is_refused"]
        ]
        if soaked["device_growth_mib"] > 8:
            problems.append(f"device memory grew by {soaked['device_growth_mib']} MiB in {cycles} loads")
    return {"passed": not problems, "problems": problems or "none", **report}


def kinds(backend: TensorRT, quick: bool) -> list[Kind]:
    base = BuildOptions(tactic_sources=())  # cuDNN and cuBLAS need not be there
    int8 = replace(base, precision=Precision.INT8)
    found = [Kind("fp32", base), Kind("fp16", replace(base, precision=Precision.FP16))]
    if not quick:
        found.append(Kind("tf32", replace(base, tf32=True)))
    if Int8Method.CALIBRATOR in backend.int8_methods:
        found.append(Kind("int8-entropy", replace(int8, int8_method=Int8Method.CALIBRATOR)))
        if not quick:
            found.append(Kind("int8-minmax", replace(int8, int8_ranging=Ranging.MINMAX)))
    found.append(Kind("int8-qdq", replace(int8, int8_method=Int8Method.QDQ), is_quantised=True))
    return found


def measured(
    backend: TensorRT, plain: TensorRT, network: Network, kind: Kind, reference: Tensor, folder: Path
) -> tuple[dict[str, Any], Path | None]:
    """Build one engine, compare it, and time it: with CUDA graphs, without, and in a bare loop."""
    Told().step(f"{network.name} {kind.name}")
    engine = folder / f"{network.name}-{kind.name}.trt"
    row: dict[str, Any] = {"network": network.name, "kind": kind.name}
    try:
        row["build_s"] = built(backend, network, kind, engine, folder / "cache")
        if kind.name == "fp16":
            row["build_again_s"] = built(backend, network, kind, engine, folder / "cache")
    except ServiceError as error:
        return {**row, "sqnr_db": float("-inf"), "failure": f"{error.detail} | {error.hint}"}, None
    answer, row["device_mib"], row["counted_mib"] = compared(backend, engine, network)
    row["sqnr_db"] = sqnr_db(reference, answer)
    row["cosine"] = float(np.sum(reference * answer) / np.linalg.norm(reference) / np.linalg.norm(answer))
    if network.labels is not None:
        row["accuracy"] = float((answer.argmax(1) == network.labels).mean())
    row["plan_mib"] = engine.stat().st_size / 2**20
    one = {network.input: network.inputs[:1]}
    row["p50_ms"] = latency_ms(backend, engine, one)
    row["no_graph_p50_ms"] = latency_ms(plain, engine, one)
    with BareLoop(engine, {network.input: one[network.input].shape}) as loop:
        row["bare_p50_ms"] = loop.p50_ms()
    return row, engine


def built(backend: TensorRT, network: Network, kind: Kind, engine: Path, cache: Path) -> float:
    """Seconds of the build, quantisation not counted."""
    model = quantised(network, engine.with_suffix(".onnx"), cache) if kind.is_quantised else network.model
    samples = network.samples if kind.options.precision is Precision.INT8 and not kind.is_quantised else None
    started = time.monotonic()
    asked = (model, kind.options, network.ranges, engine, Told())
    backend.compile(*asked, calibration=samples, cache=cache, rows_max=32)
    return round(time.monotonic() - started, 2)


def quantised(network: Network, out: Path, cache: Path) -> Path:
    source = described_source(onnx.load(str(network.model)))
    shapes = run_shapes(source, network.ranges, {network.input: (1, *network.inputs.shape[1:])})
    Quantiser(network.samples, shapes, None, cache, Told()).quantise(network.model, out, Placement.TENSORRT)
    return out


def compared(backend: TensorRT, engine: Path, network: Network) -> tuple[Tensor, float, float]:
    """The engine's answers; device memory that it took by the driver's account, and by its own, in MiB."""
    before = free_mib(backend)
    with closing(backend.load(engine)) as loaded:
        answer = answers_of(loaded, network)
        with closing(loaded.open_context()) as context:
            context.run({network.input: network.inputs[: network.largest]})
            return answer, before - free_mib(backend), loaded.device_bytes / 2**20


def answers(loaded: LoadedEngine, network: Network) -> Tensor:
    with closing(loaded):
        return answers_of(loaded, network)


def answers_of(loaded: LoadedEngine, network: Network) -> Tensor:
    with closing(loaded.open_context()) as context:
        pieces = [
            next(iter(context.run({network.input: piece}).values()))
            for piece in np.array_split(network.inputs, range(8, len(network.inputs), 8))
        ]
    return np.concatenate(pieces).astype(np.float64)


def sqnr_db(reference: Tensor, answer: Tensor) -> float:
    noise = float(((reference - answer) ** 2).sum())
    return 200.0 if noise == 0 else float(10 * np.log10(float((reference**2).sum()) / noise))


def latency_ms(backend: TensorRT, engine: Path, inputs: Mapping[str, Tensor], runs: int = 500) -> float:
    """Median of `run`, host tensors to host tensors."""
    with closing(backend.load(engine)) as loaded, closing(loaded.open_context()) as context:
        return median_ms(lambda: context.run(dict(inputs)), runs)


def median_ms(work: Callable[[], object], runs: int) -> float:
    for _ in range(20):
        work()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def throughput(backend: TensorRT, engine: Path) -> list[dict[str, Any]]:
    """Rows a second by batch length: one context of ours, and the bare loop."""
    rows = []
    for batch in (1, 8, 16, 32):
        x = {"image": np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)}
        own = batch / latency_ms(backend, engine, x, 100) * 1e3
        with BareLoop(engine, {"image": x["image"].shape}) as loop:
            rows.append({"batch": batch, "rows_per_s": own, "bare_rows_per_s": batch / loop.p50_ms(100) * 1e3})
    return rows


def soak(backend: TensorRT, engine: Path, cycles: int) -> dict[str, Any]:
    """Load, run on two contexts and unload, again and again."""
    x = {"image": np.zeros((4, 3, 224, 224), np.float32)}

    def cycle() -> None:
        with ExitStack() as opened:
            loaded = opened.enter_context(closing(backend.load(engine)))
            for _ in range(2):
                opened.enter_context(closing(loaded.open_context())).run(x)

    for _ in range(5):
        cycle()
    device, host, started = free_mib(backend), resident_bytes(_own_pid()), time.monotonic()
    for _ in range(cycles):
        cycle()
    return {
        "cycles": cycles,
        "load_and_unload_ms": (time.monotonic() - started) / cycles * 1e3,
        "device_growth_mib": device - free_mib(backend),
        "host_growth_mib": (resident_bytes(_own_pid()) - host) / 2**20,
    }


def damaged(engine: Path, folder: Path) -> list[dict[str, Any]]:
    """What a damaged engine is answered with: each in a child, since a runtime may crash on it."""
    whole = engine.read_bytes()
    cases = {
        "empty": b"",
        "garbage": b"hello" * 1000,
        "truncated": whole[: len(whole) // 2],
        "without its end": whole[:-1000],
        "other version (byte 8)": whole[:8] + bytes([whole[8] ^ 0xFF]) + whole[9:],
        "Ultralytics header": len(b'{"a":1}').to_bytes(4, "little") + b'{"a":1}' + whole,
    }
    found = []
    for name, data in cases.items():
        path = folder / "damaged.trt"
        path.write_bytes(data)
        ran = subprocess.run(
            [sys.executable, __file__, str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        last = (ran.stdout.strip().splitlines() or [f"status {ran.returncode}"])[-1]
        wanted = "loaded" if name == "Ultralytics header" else "engine_"
        found.append({"damage": name, "answer": last[:160], "is_refused": last.startswith(wanted)})
    return found


def int8_problems(rows: list[dict[str, Any]]) -> list[str]:
    """INT8 digits must be within a point of FP32."""
    accuracy = {row["kind"]: row["accuracy"] for row in rows if "accuracy" in row}
    full = accuracy.get("fp32", 0.0)
    return [f"digits {kind}: {found} against {full}" for kind, found in accuracy.items() if found < full - 0.01]


def free_mib(backend: TensorRT) -> float:
    return backend.free_device_bytes() / 2**20


def _own_pid() -> int:
    return int(Path("/proc/self").resolve().name)


def _answer_to(path: Path) -> str:
    """What loading the file comes to, in a word and a sentence."""
    try:
        with closing(TensorRT().load(path)) as engine:
            return json.dumps(f"loaded {engine.signature.inputs}").strip('"')
    except ServiceError as error:
        return f"{error.code}: {error.detail}"


if __name__ == "__main__":
    print(_answer_to(Path(sys.argv[1])))
