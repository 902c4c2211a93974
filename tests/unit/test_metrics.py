"""What is counted, and the pages that are made of it."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import pytest

from app.api.build_counts import BuildCounts
from app.api.metric_families import by_engine
from app.api.observed import RequestCounts, route_of
from app.api.triton_metrics import triton_page
from app.backends.nvml import GpuReading
from app.domain.jobs import EventKind, JobEvent, JobState, Stage
from app.serving.distribution import Distribution
from app.serving.statistics import Totals
from app.storage.feed import FeedLine

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
# Source: perf_analyzer's TritonClientBackend::ParseAndStoreMetric; a number ends where this stops to match.
PERF_ANALYZER = r'\n{name}\{{gpu_uuid="([^"]+)"\}} (\d+\.?\d*)'


def test_a_value_counts_for_the_first_bound_that_is_not_below_it() -> None:
    spread = Distribution((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        spread.add(value)

    assert spread.cumulative() == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert (spread.count, spread.total) == (4, 12.0)


def test_perf_analyzer_reads_every_figure_of_a_gpu_whole() -> None:
    gpu = GpuReading("GPU-1", 0.41, 85_899_345_920, 1_610_612_736, 71.5, 300.0, 123456789.5, 40.0)

    page = triton_page([gpu], [], [])

    for name, value in (
        ("nv_gpu_utilization", 0.41),
        ("nv_gpu_power_usage", 71.5),
        ("nv_gpu_memory_total_bytes", 85_899_345_920),
        ("nv_gpu_memory_used_bytes", 1_610_612_736),
    ):
        found = re.findall(PERF_ANALYZER.format(name=name), page)
        assert [(uuid, float(digits)) for uuid, digits in found] == [("GPU-1", value)]


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    page = triton_page([GpuReading("board", 0.5)], [("net:2", Totals(requests=7))], [("net:2", 3)])

    assert "nv_gpu_power_usage" not in page
    assert 'nv_inference_request_success{model="net",version="2"} 7\n' in page
    assert page.endswith('nv_inference_pending_request_count{model="net",version="2"} 3\n')


class Lines:
    """A feed whose lines the test writes."""

    def __init__(self) -> None:
        self.lines: list[FeedLine] = []

    def add(self, job: str, after_s: float, stage: Stage | None, state: JobState | None = None) -> None:
        kind = EventKind.STATE if state else EventKind.STAGE
        at = NOON + timedelta(seconds=after_s)
        self.lines.append(FeedLine(JobEvent(len(self.lines) + 1, job, at, kind, stage, "", state), "net", None))

    def last_seq(self) -> int:
        return len(self.lines)

    def after(self, seq: int, limit: int, *, with_steps: bool = False) -> list[FeedLine]:
        return self.lines[seq : seq + limit]


def test_a_stage_lasts_until_the_next_one_of_the_same_job() -> None:
    lines = Lines()
    lines.add("before the start", 0, None, JobState.FAILED)
    counts = BuildCounts(lines)  # type: ignore[arg-type]
    lines.add("a", 0, None, JobState.RUNNING)
    lines.add("a", 1, Stage.INSPECT)
    lines.add("b", 2, Stage.INSPECT)
    lines.add("a", 3, Stage.COMPILE)
    counts.catch_up()
    lines.add("a", 10, None, JobState.SUCCEEDED)
    lines.add("b", 4, None, JobState.CANCELLED)

    counts.catch_up()

    assert (counts.stage_seconds[Stage.INSPECT].count, counts.stage_seconds[Stage.INSPECT].total) == (2, 4.0)
    assert counts.stage_seconds[Stage.COMPILE].total == 7.0
    assert counts.ended == {JobState.SUCCEEDED: 1, JobState.FAILED: 0, JobState.CANCELLED: 1}


def test_addresses_that_nobody_serves_share_one_route() -> None:
    counts = RequestCounts()
    for method in ("GET", "BREW", "PROPFIND"):
        counts.add(route_of({"path": f"/{method}"}), method, 404, 0.1)

    assert counts.answered == {("unmatched", "GET", 404): 1, ("unmatched", "OTHER", 404): 2}


@pytest.mark.parametrize("refs", [("net:1", "other:1"), ("net:1",)])
def test_an_engine_that_drains_while_it_loads_anew_is_one_sample(refs: tuple[str, ...]) -> None:
    class State:
        def __init__(self, waiting: int) -> None:
            self.refs, self.waiting = refs, waiting

    assert by_engine([State(2), State(3)], lambda state: state.waiting) == [(("net:1",), 5)]  # type: ignore[list-item]
