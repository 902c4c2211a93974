"""The soak, short: loads, unloads, new versions and cancelled requests under load, every answer checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.service import ROOT


def test_a_short_soak_finds_no_wrong_answer_no_failure_and_no_growth(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, ROOT / "scripts" / "soak.py", "--minutes", "0.2", "--clients", "16", "--json", report]

    run = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=400
    )

    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    found = json.loads(report.read_text())
    assert found["problems"] == [] and found["wrong"] == found["failed"] == 0
    assert found["right"]["together"] > 100 and found["cancelled"] > 0 and found["acts"]["swapped"] > 0
    assert found["right"]["fast"] > 100
    assert found["replicas"]["connections_at_most"] > 0 or not found["replicas"]["replicas"]
