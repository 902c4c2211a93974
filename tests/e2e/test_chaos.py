"""scripts/chaos, in short: faults while clients work, and its own eye for what must not happen."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.service import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from chaos import run, small_disk
from chaos_clients import Clients, Ledger


def test_nothing_accepted_is_lost_and_nothing_wrong_is_answered(tmp_path: Path) -> None:
    with small_disk(tmp_path, 128) as disk:
        report = run(tmp_path, rounds=3, seed=11, disk=disk)

    assert report.problems == []
    assert report.figures["database"] == "ok"
    assert report.figures["accepted jobs"] >= 1 and report.figures["answers checked"] >= 1


@pytest.mark.parametrize(
    "answer",
    [
        np.full(64, 5, np.float32),  # of a network that nobody asked for
        np.concatenate([np.full(32, 3, np.float32), np.full(32, 4, np.float32)]),  # of two networks
        np.full(32, 3, np.float32),  # half of it
    ],
)
def test_a_wrong_answer_is_noticed(answer: np.ndarray) -> None:
    clients = Clients.__new__(Clients)
    clients.ledger = Ledger(factors={"net": {3, 4}})

    clients._check("net", np.ones((1, 64), np.float32), answer.tobytes())

    assert clients.ledger.wrong
