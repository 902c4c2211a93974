"""What the benchmark's own tools can be trusted with: the load generator, the checks of answers, the ratios."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_cases
import bench_targets
from bench_cells import Found, bare, run_rounds
from load_generator import Kept, LoadGenerator, post

CORES = os.sched_getaffinity(0)
BODY = b"0123456789" * 10
OK = b"HTTP/1.1 200 OK\r\nServer: c\r\ncontent-length: 100\r\n\r\n" + BODY


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> LoadGenerator:
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler; scripts/bench says so and ends")
    return LoadGenerator(tmp_path_factory.mktemp("load"), max(CORES))


@pytest.fixture
def requests(generator: LoadGenerator) -> list[Path]:
    return generator.written("ask", [post("/a", bytes(10), {}), post("/b", bytes(300_000), {})])


def run(generator: LoadGenerator, requests: list[Path], answer: bytes, clients: int, keep_every: int):
    with generator.trivial_server(answer, CORES) as port:
        return generator.run(port, requests, clients, 0.3, warm_s=0.05, keep_every=keep_every)


@pytest.mark.parametrize("clients", [1, 8])
def test_every_answer_is_counted_once_and_as_long_as_it_took(
    generator: LoadGenerator, requests: list[Path], clients: int
) -> None:
    load = run(generator, requests, OK, clients, 1)

    assert load.failed == 0 and load.per_s > 0
    assert len(load.latencies_ms) == round(load.per_s * 0.3)
    assert load.latencies_ms.sum() <= clients * 350  # warm-up included: an answer counts by its end
    assert 0 < load.busy <= 1.1


def test_answers_are_kept_whole_with_the_request_that_they_answer(
    generator: LoadGenerator, requests: list[Path]
) -> None:
    load = run(generator, requests, OK, 3, 2)

    assert {kept.request for kept in load.kept} == {0, 1}
    assert {(kept.status, kept.body, kept.headers["server"]) for kept in load.kept} == {(200, BODY, "c")}


def test_an_answer_that_is_no_success_counts_as_a_failure(generator: LoadGenerator, requests: list[Path]) -> None:
    load = run(generator, requests, OK.replace(b"200 OK", b"503 No"), 2, 1)

    assert load.per_s == 0 and load.failed > 0
    assert load.kept[0].status == 503


# --- checks and ratios --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Iterator[bench_cases.Case]:
    yield bench_cases.tiny()


def test_an_answer_is_right_only_for_its_own_request(tiny: bench_cases.Case) -> None:
    right = Kept(2, 200, {"inference-header-content-length": "3"}, b"{ }" + tiny.expected[2].tobytes())

    assert tiny.is_right(right)
    assert not tiny.is_right(replace(right, request=3))
    assert not tiny.is_right(replace(right, status=500))
    assert not tiny.is_right(replace(right, body=right.body[:-4]))


def test_every_other_round_goes_backwards() -> None:
    order: list[str] = []

    class Loops:
        def run(self, order_: str) -> tuple[float, np.ndarray]:
            order.append(order_)
            return 1.0, np.zeros(1)

    class Name(str):
        threads = 1

    run_rounds([bare(Loops(), "tiny", "bare", Name(name)) for name in "abc"], 2, lambda _: None)

    assert "".join(order) == "abccba"


def test_a_ratio_is_the_median_of_what_was_measured_side_by_side() -> None:
    mine, other = Found(per_s=[10, 40, 12]), Found(per_s=[20, 40, 30])

    assert bench_targets.ratio(mine, other) == 0.5


def test_a_limit_from_above_is_met_below_it() -> None:
    assert bench_targets.Goal("p99 / p50", 1.9, 2, is_at_most=True).is_met
    assert not bench_targets.Goal("of the best", 0.9, 0.95).is_met
