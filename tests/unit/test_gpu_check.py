"""What can be known of the check on a GPU without one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import gpu_check
import gpu_engines


def test_the_report_shows_rows_as_tables_and_names_the_parts_that_failed():
    rows = [{"kind": "fp32", "p50_ms": 0.25}, {"kind": "fp16", "failure": "a|b"}]

    text = gpu_check.markdown({"engines": {"passed": False, "engines": rows, "problems": "none"}})

    assert "## engines: FAILED" in text
    assert "| kind | p50_ms | failure |" in text
    assert "| fp32 | 0.25 | – |" in text and r"| fp16 | – | a\|b |" in text


def test_a_part_that_breaks_off_fails_and_says_where(tmp_path):
    def part(asked: object, folder: Path) -> dict[str, object]:
        raise ValueError("no engine")

    section = gpu_check._ran(part, None, tmp_path)

    assert section["passed"] is False and "no engine" in section["broke_off"]


def test_unknown_parts_are_refused():
    with pytest.raises(SystemExit):
        gpu_check.main(["--parts", "engines,colour"])


def test_noise_is_told_in_decibel():
    reference = np.array([3.0, 4.0])

    assert gpu_engines.sqnr_db(reference, reference) == 200
    assert gpu_engines.sqnr_db(reference, reference + np.array([0.3, 0.4])) == pytest.approx(20)
