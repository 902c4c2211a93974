"""What the parts of the check share: claims, and builds over HTTP."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.service import Service

BUILD_S = 540.0
# Another backend may be named to try the check itself without a GPU.
BACKEND = os.environ.get("GPU_CHECK_BACKEND", "tensorrt")
OPTIONS = {"backend": BACKEND, **({"tactic_sources": []} if BACKEND == "tensorrt" else {})}  # cuDNN need not be there

# Random weights make a network that INT8 keeps less of than a trained one.
RANDOM_WEIGHTS = {"sqnr_db": 8, "cosine": 0.9, "max_rel": 1, "top1": 0}


class Check:
    """What was found, and what is not as promised."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.found: dict[str, Any] = {}

    def that(self, claim: str, is_so: object) -> None:
        print(f"  {'ok ' if is_so else 'NOT'} {claim}", file=sys.stderr, flush=True)
        if not is_so:
            self.problems.append(claim)

    def step(self, name: str, work: Callable[[], Any]) -> None:
        """Do one part; if it breaks off, that is a problem, and the next part has its turn."""
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        try:
            found = work()
        except Exception as error:
            self.that(f"{name} breaks off: {type(error).__name__}: {str(error)[:600]}", False)
            return
        if found is not None:
            self.found[name] = found


def requested(
    client: httpx.Client,
    model: bytes,
    name: str,
    calibration: bytes | None,
    precision: str,
    tolerance: Any = None,
    **more: Any,
) -> dict[str, Any]:
    options = {**OPTIONS, "precision": precision, **({"tolerance": tolerance} if tolerance else {}), **more}
    files = {"model": ("model.onnx", model)} | ({"calibration": ("images.zip", calibration)} if calibration else {})
    answer = client.post("/jobs", files=files, data={"name": name, "options": json.dumps(options)})
    assert answer.status_code in (200, 202), answer.text
    found: dict[str, Any] = answer.json()
    return found


def waited(client: httpx.Client, job: str) -> dict[str, Any]:
    end = time.monotonic() + BUILD_S
    while True:
        found: dict[str, Any] = client.get(f"/jobs/{job}", params={"wait": 30}).json()
        if found["state"] not in ("queued", "running"):
            return found
        assert time.monotonic() < end, found


def client_of(service: Service) -> httpx.Client:
    return httpx.Client(base_url=service.url, timeout=BUILD_S, trust_env=False)
