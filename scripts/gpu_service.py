"""The running service on a real GPU: builds over HTTP, inference by many clients, and what goes wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from gpu_client import BACKEND, RANDOM_WEIGHTS, Check, client_of, requested, waited
from gpu_faults import damaged, interrupted, stale, uploaded
from gpu_load import FOLDED, folded, latency, load, tensor_post, there
from gpu_networks import DIGITS, pictures
from lean_client import times_ms

from tests import networks, samples
from tests.service import Service, resident_bytes

SIDE = 224


def checked(folder: Path, *, cycles: int, quick: bool, seconds: float) -> dict[str, Any]:
    check = Check()
    service = Service(folder / "data", batch_rows_max="32", restore_warm="false").start()
    try:
        with client_of(service) as client:
            archive = samples.pictures(folder / "pictures.zip", 80, SIDE).read_bytes()
            check.step("builds", lambda: builds(client, check, archive, quick))
            check.step("digits_accuracy", lambda: digits_accuracy(client, check))
            check.step("folded", lambda: build_folded(client, check))
            check.step("latency", lambda: latency(client, service.url, folder))
            check.step("load", lambda: load(client, service.url, folder, seconds))
            check.step("soak", lambda: soak(client, service, cycles, check))
            check.step("uploaded", lambda: uploaded(client, check))
            check.step("interrupted", lambda: interrupted(client, service, check))
        check.step("memory", lambda: memory(service))
        check.step("damaged", lambda: damaged(service, check))
        check.step("stale", lambda: stale(service, check))
    finally:
        service.kill()
    log = service.log[-4000:] if check.problems else "left out: nothing went wrong"
    return {"passed": not check.problems, "problems": check.problems or "none", **check.found, "log": log}


# --- builds ----------------------------------------------------------------------------------------------------------


def builds(client: httpx.Client, check: Check, archive: bytes, quick: bool) -> list[dict[str, Any]]:
    """Both networks in every precision, each calibrated by its own archive."""
    resnet = networks.resnet18().SerializeToString()
    rows = []
    for network, model, calibration in (
        ("digits", (DIGITS / "digits.onnx").read_bytes(), (DIGITS / "calibration.zip").read_bytes()),
        ("resnet18", resnet, archive),
    ):
        for precision in ("fp32", "fp16", "int8", *(() if quick and network == "resnet18" else ("auto",))):
            name = f"{network}-{precision}"
            tolerance = RANDOM_WEIGHTS if network == "resnet18" else None
            job = requested(client, model, name, calibration, precision, tolerance if precision != "fp32" else None)
            ended = waited(client, job["id"])
            check.that(f"{name} is built: {ended['state']} {ended['failure'] or ''}", ended["state"] == "succeeded")
            rows.append(described(client, name, ended))
    return rows


def build_folded(client: httpx.Client, check: Check) -> None:
    ended = folded(client)
    check.that(f"{FOLDED} is built: {ended['state']} {ended['failure'] or ''}", ended["state"] == "succeeded")


def described(client: httpx.Client, name: str, job: dict[str, Any]) -> dict[str, Any]:
    if job["state"] != "succeeded":
        return {"engine": name, "failure": str(job["failure"])[:600]}
    engine = client.get(f"/engines/{name}").json()
    accuracy, timing = engine.get("accuracy") or {}, engine.get("latency") or {}
    outputs = accuracy.get("outputs") or [{}]
    return {
        "engine": name,
        "built_in_s": engine.get("built_in_s"),
        "size_mib": (engine.get("size_bytes") or 0) / 2**20,
        "sqnr_db": outputs[0].get("sqnr_db"),
        "top1": accuracy.get("top1_agreement"),
        "p50_ms": timing.get("p50_ms"),
        "rows_per_s": timing.get("throughput_per_s"),
    }


# --- inference -------------------------------------------------------------------------------------------------------


def digits_accuracy(client: httpx.Client, check: Check) -> list[dict[str, Any]]:
    """On the whole held-out third, by tensors; and by the PNGs of the example."""
    heldout = np.load(DIGITS / "heldout.npz")
    x = (heldout["images"].astype(np.float32) / 255).reshape(-1, 1, 8, 8)
    found = {}
    for name in there(client, *(f"digits-{precision}" for precision in ("fp32", "fp16", "int8", "auto"))):
        precision = name.removeprefix("digits-")
        answers = []
        for piece in np.array_split(x, 25):
            answer = client.post(
                f"/infer/digits-{precision}", content=raw(piece), headers=raw_headers(piece), params=shape_of(piece)
            )
            assert answer.status_code == 200, answer.text
            answers.append(np.frombuffer(answer.content, np.float32).reshape(len(piece), 10))
        found[precision] = float((np.concatenate(answers).argmax(1) == heldout["labels"]).mean())
    check.that(f"INT8 digits are within a point of FP32: {found}", found["int8"] >= found["fp32"] - 0.01)
    png = (DIGITS / "test" / "00_label6.png").read_bytes()
    answer = client.post("/infer/digits-int8", content=png, headers={"Content-Type": "image/png"})
    check.that(
        "a PNG of a six is read as a six",
        answer.status_code == 200 and answer.json()["predictions"][0][0]["index"] == 6,
    )
    return [{"precision": name, "accuracy": value} for name, value in found.items()]


def memory(service: Service) -> list[dict[str, Any]]:
    """Memory of a server that was started anew and has answered with one engine."""
    rows = []
    for name in ("resnet18-fp32", "resnet18-fp16", "resnet18-int8"):
        service.stop()
        service.start()
        assert service.process is not None
        cold = resident_mib(service.process.pid)["server_resident_mib"]
        with client_of(service) as client:
            if not there(client, name):
                continue
            times_ms(service.url, tensor_post(name, pictures(1, SIDE)), 20)
        rows.append({"warm": name, **resident_mib(service.process.pid), "server_without_engine_mib": cold})
    return rows


def resident_mib(pid: int) -> dict[str, float]:
    """In all, and what of it is the process's own: the rest are pages of files, mostly CUDA's and TensorRT's code."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    return {"server_resident_mib": found["VmRSS"], "anonymous_mib": found["RssAnon"]}


def soak(client: httpx.Client, service: Service, cycles: int, check: Check) -> list[dict[str, Any]]:
    """Load and unload through the API: memory of the GPU, as nvidia-smi counts it, and of the server."""
    assert service.process is not None
    name = there(client, "resnet18-fp16", "resnet18-int8")[0]

    def used() -> tuple[float, float]:
        pid = service.process.pid if service.process else 0
        return gpu_used_mib(), resident_bytes(pid) / 2**20

    def cycle() -> None:
        assert client.post(f"/engines/{name}/load").status_code == 200
        assert client.post(f"/engines/{name}/unload").status_code == 200

    for _ in range(5):
        cycle()
    device, host = used()
    for _ in range(cycles):
        cycle()
    device_after, host_after = used()
    check.that(
        f"{cycles} loads leave the GPU's memory as it was: {device_after - device:+.0f} MiB",
        device_after - device <= 16,
    )
    return [{"cycles": cycles, "device_growth_mib": device_after - device, "host_growth_mib": host_after - host}]


# --- helpers ---------------------------------------------------------------------------------------------------------


def raw(x: Any) -> bytes:
    return bytes(np.ascontiguousarray(x).tobytes())


def raw_headers(_: Any) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


def shape_of(x: Any) -> dict[str, str]:
    return {"shape": "x".join(map(str, x.shape))}


def gpu_used_mib() -> float:
    """Of the whole GPU, as NVML tells: the server is another process."""
    if BACKEND != "tensorrt":
        return 0.0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    ran = subprocess.run(query, capture_output=True, text=True, check=True)
    return float(ran.stdout.splitlines()[0])
