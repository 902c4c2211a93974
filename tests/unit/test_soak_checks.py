"""What the soak would notice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import soak
import soak_engines
import soak_traffic
from soak_traffic import Tally

QUESTION = soak_traffic.Question("json", "swap", [1, 3], "/infer/swap", {}, b"")


@pytest.fixture(scope="module")
def truths() -> dict[str, soak_engines.Truth]:
    return {f"swap:{number}": soak_engines.version(number) for number in (1, 2)}


async def asked(truths: dict[str, soak_engines.Truth], status: int, body: Any, **headers: str) -> Tally:
    """What a client makes of this answer."""
    tally = Tally()
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=body, headers=headers))
    async with httpx.AsyncClient(base_url="http://soak", transport=transport) as client:
        await soak_traffic._asked(client, QUESTION, truths, tally)
    return tally


def answered(ref: str, logits: Any) -> dict[str, Any]:
    return {"engine": ref, "outputs": {"logits": {"data": np.asarray(logits).tolist()}}}


async def test_an_answer_is_right_for_the_version_that_gave_it_only(truths: dict[str, soak_engines.Truth]) -> None:
    logits = truths["swap:2"].expected[[1, 3]]

    assert (await asked(truths, 200, answered("swap:2", logits))).versions == {"swap:2": 1}
    assert (await asked(truths, 200, answered("swap:1", logits))).wrong == 1
    assert (await asked(truths, 200, answered("swap:2", logits[::-1]))).wrong == 1
    assert (await asked(truths, 200, answered("swap:2", logits[:1]))).wrong == 1
    assert (await asked(truths, 200, answered("swap:3", logits))).wrong == 1


async def test_a_503_must_be_announced(truths: dict[str, soak_engines.Truth]) -> None:
    announced = await asked(truths, 503, {"code": "queue_full"}, **{"Retry-After": "1"})
    silent = await asked(truths, 503, {"code": "queue_full"})
    other = await asked(truths, 503, {"code": "engine_unloadable"}, **{"Retry-After": "1"})
    broken = await asked(truths, 404, {"code": "engine_not_found"})

    assert (announced.failed, announced.refused) == (0, {"queue_full": 1})
    assert [tally.failed for tally in (silent, other, broken)] == [1, 1, 1]
    assert "engine_not_found" in broken.problems[0]


@pytest.mark.parametrize(("grown_mib", "problems"), [(20, 0), (30, 1)])
def test_memory_that_grows_after_warm_up_is_a_problem(grown_mib: float, problems: int) -> None:
    tally, found = Tally(cancelled=1), soak.Soaked()
    tally.right["v2"] = 1
    found.acts.update(["swapped", "unloaded"])
    found.memory_mib = [(at, 100.0 if at < 50 else 160.0 + grown_mib * (at > 85)) for at in range(10, 100)]
    found.memory_mib = [(at, mib + 60 * (at < 50) * (at > 35)) for at, mib in found.memory_mib]  # warm-up ends at 40

    report = soak._report(tally, found, 100, 1)

    assert len(report["problems"]) == problems, json.dumps(report["problems"])
