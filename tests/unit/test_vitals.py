"""The device as it is told: in steps, so that a poll is answered anew only when something has really changed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from app.api.vitals import Sample, Vitals, alarms, settled

NOW = Sample(1, 8000, 4010, 100_000, 50_480, 47)


def test_figures_are_told_in_steps() -> None:
    told = settled(None, NOW)

    assert (told.memory_available_mib, told.disk_free_mib, told.temperature_c) == (4000, 50_000, 45)


@pytest.mark.parametrize(
    "change", [{"memory_available_mib": 3610}, {"disk_free_mib": 49_010}, {"temperature_c": 49}, {"temperature_c": 41}]
)
def test_a_figure_that_has_moved_by_less_than_a_step_is_told_as_before(change: dict[str, int]) -> None:
    told = settled(None, NOW)

    assert settled(told, replace(NOW, **change)) == told


@pytest.mark.parametrize(
    "change", [{"memory_available_mib": 3600}, {"disk_free_mib": 49_000}, {"temperature_c": 50}, {"workers": 0}]
)
def test_a_figure_that_has_moved_by_a_step_is_told(change: dict[str, int]) -> None:
    told = settled(None, NOW)

    assert settled(told, replace(NOW, **change)) != told


def test_a_figure_that_hovers_at_the_edge_of_a_step_does_not_flicker() -> None:
    told = settled(None, replace(NOW, temperature_c=52))
    seen = {told.temperature_c}
    for celsius in (53, 52, 53, 52, 53):
        told = settled(told, replace(NOW, temperature_c=celsius))
        seen.add(told.temperature_c)

    assert len(seen) == 1


def test_alarms_name_what_a_person_should_look_at() -> None:
    bad = replace(NOW, workers=0, disk_free_mib=511, memory_available_mib=399)

    assert alarms(NOW, min_free_mib=512) == ()
    assert [alarm.code for alarm in alarms(bad, min_free_mib=512)] == ["no_worker", "disk_low", "memory_low"]


async def test_all_who_ask_at_one_time_share_one_look_and_the_next_comes_when_it_is_old(tmp_path: Path) -> None:
    looks: list[float] = []
    now_s = 100.0

    def workers() -> int:
        looks.append(now_s)
        return len(looks)

    vitals = Vitals(tmp_path, 0, workers, clock=lambda: now_s)
    await asyncio.gather(*(vitals.sample() for _ in range(20)))
    assert (len(looks), vitals.revision) == (1, 1)

    now_s = 106.0
    assert (await vitals.sample()).workers == 2
    assert (len(looks), vitals.revision) == (2, 2)
