"""What the service adds to the engine: latency and throughput over HTTP beside the bare TensorRT loop, in one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from gpu_client import BACKEND, RANDOM_WEIGHTS, requested, waited
from gpu_networks import pictures
from lean_client import Post, requests_per_s, times_ms

from tests import networks, samples

CLIENTS = 8
SIDE = 224
BATCHES = (1, 8, 16, 32)  # rows of one request
RESNETS = ("resnet18-fp32", "resnet18-fp16", "resnet18-int8")
FOLDED = "resnet18-uint8"  # float16, its preprocessing folded in: it takes images of uint8
RAW = "application/octet-stream"


def latency(client: httpx.Client, url: str, folder: Path, runs: int = 300) -> list[dict[str, Any]]:
    """One client, one connection; the bare loop before and after it."""
    jpeg = Post("", {"Content-Type": "image/jpeg"}, samples.encoded(samples.picture(1, 640, 480)))
    rows = []
    for name in there(client, *RESNETS):
        bare = BareEngine(client, name, folder)
        before = bare.p50_ms(1)
        tensor = times_ms(url, tensor_post(name, pictures(1, SIDE)), runs)
        image = times_ms(url, Post(f"/infer/{name}", jpeg.headers, jpeg.body), runs)
        floor = (before + bare.p50_ms(1)) / 2
        p50 = float(np.median(tensor))
        rows.append(
            {
                "engine": name,
                "bare_p50_ms": floor,
                "tensor_p50_ms": p50,
                "tensor_p99_ms": float(np.percentile(tensor, 99)),
                "above_bare_ms": p50 - floor,
                "jpeg_p50_ms": float(np.median(image)),
            }
        )
    return rows


def load(client: httpx.Client, url: str, folder: Path, seconds: float) -> list[dict[str, Any]]:
    """Eight clients, each a process, by rows in a request; beside the bare loop at its best batch."""
    rows = []
    for name in there(client, *RESNETS, FOLDED):
        bare = BareEngine(client, name, folder)
        best = max(batch / bare.p50_ms(batch) * 1e3 for batch in BATCHES)
        for batch in BATCHES:
            asked = requests_per_s(url, tensor_post(name, bare.inputs(batch)), CLIENTS, seconds)
            rows.append(
                {
                    "engine": name,
                    "clients": CLIENTS,
                    "rows_a_request": batch,
                    "rows_per_s": asked * batch,
                    "bare_best_rows_per_s": best,
                    "ratio": asked * batch / best,
                    "body_gb_per_s": asked * bare.inputs(batch).nbytes / 1e9,
                }
            )
    return rows


def folded(client: httpx.Client) -> dict[str, Any]:
    """Build the network that takes images of uint8; how the job ended."""
    model = networks.resnet18().SerializeToString()
    job = requested(client, model, FOLDED, None, "fp16", RANDOM_WEIGHTS, fold_preprocess=True)
    return waited(client, job["id"])


class BareEngine:
    """The file of a published engine, run without the service."""

    def __init__(self, client: httpx.Client, name: str, folder: Path) -> None:
        self._engine = folder / f"{name}.engine"
        self._engine.write_bytes(client.get(f"/engines/{name}/file").content)
        self._input = client.get(f"/engines/{name}").json()["signature"]["inputs"][0]

    def inputs(self, batch: int) -> Any:
        if self._input["dtype"] == "uint8":
            return np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3)).astype(np.uint8)
        return pictures(batch, SIDE)

    def p50_ms(self, batch: int) -> float:
        with self._loop(batch) as loop:
            return float(loop.p50_ms(200))

    @contextmanager
    def _loop(self, batch: int) -> Iterator[Any]:
        if BACKEND == "tensorrt":
            from bare_loop import BareLoop

            with BareLoop(self._engine, {self._input["name"]: self.inputs(batch).shape}) as loop:
                yield loop
        else:  # to try the check itself without a GPU
            yield OwnLoop(self._engine, self._input["name"], self.inputs(batch))


class OwnLoop:
    """The engine through its backend, in this process."""

    def __init__(self, engine: Path, name: str, x: Any) -> None:
        from app.backends import registry

        self._context = registry.backend(BACKEND).load(engine).open_context()
        self._inputs = {name: x}

    def p50_ms(self, runs: int) -> float:
        from gpu_engines import median_ms

        return median_ms(lambda: self._context.run(self._inputs), min(runs, 20))


def tensor_post(name: str, x: Any) -> Post:
    shape = "x".join(map(str, x.shape))
    return Post(f"/infer/{name}?shape={shape}", {"Content-Type": RAW, "Accept": RAW}, np.ascontiguousarray(x).tobytes())


def there(client: httpx.Client, *names: str) -> list[str]:
    """Those engines that were built."""
    return [name for name in names if client.get(f"/engines/{name}").status_code == 200]
