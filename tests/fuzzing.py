"""Schemathesis against a running service: every operation of the OpenAPI document, with every check on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.keys import add_key
from tests.service import ROOT, Service

DIGITS = ROOT / "examples" / "digits"
CONFIG = ROOT / "tests" / "schemathesis.toml"


def fuzzed(folder: Path, *options: str) -> tuple[int, str, str]:
    """Fuzz a service of its own, which has an engine and asks for keys.

    Args:
        folder: for the service's data.
        options: of `schemathesis run`, such as --max-examples or --max-time.

    Returns:
        Schemathesis's exit status and report, and the service's log.
    """
    # Guessed keys are part of the test: the limit on them would hide whether they are refused.
    service = Service(folder / "data", key_attempts_per_min="0").start()
    try:
        with service.client() as client:
            labels = (DIGITS / "labels.txt").read_text()
            job = service.build(client, (DIGITS / "digits.onnx").read_bytes(), "digits", labels=labels)
            assert job["state"] == "succeeded", job
            key = add_key(service.data_dir, "fuzzer", "admin")
            service.eventually(lambda: client.get("/jobs").status_code == 401)
        tool = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "--no-color"]
        credentials = ["--header", f"Authorization: Bearer {key}"]
        done = subprocess.run(
            [*tool, "run", f"{service.url}/openapi.json", *credentials, *options],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout, service.log
    finally:
        service.stop()
