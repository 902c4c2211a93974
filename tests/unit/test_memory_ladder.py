"""What a TensorRT build is tried again with after it was ended for want of memory."""

from __future__ import annotations

import pytest

from app.backends.tensorrt.memory_ladder import lighter
from app.domain.builds import BuildOptions

DEVICE_MIB = 8192


def steps(*, has_levels: bool = True, **options: int) -> list[tuple[int | None, int | None]]:
    """Workspace and level of each further try."""
    found = lighter(BuildOptions(**options), DEVICE_MIB, has_levels=has_levels)  # type: ignore[arg-type]
    return [(step.workspace_mib, step.optimization_level) for step in found]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [(4096, None), (4096, 1)]),  # TensorRT's own: the whole device, level 3
        ({"workspace_mib": 1000}, [(500, None), (500, 1)]),
        ({"workspace_mib": 1000, "optimization_level": 5}, [(500, 5), (500, 3)]),
        ({"optimization_level": 1}, [(4096, 1), (4096, 0)]),
        ({"optimization_level": 0}, [(4096, 0)]),
        ({"workspace_mib": 20}, [(16, None), (16, 1)]),
        ({"workspace_mib": 16}, [(16, 1)]),
        ({"workspace_mib": 16, "optimization_level": 0}, []),
    ],
)
def test_first_half_the_workspace_then_a_lower_level_beside_it(options, wanted):
    assert steps(**options) == wanted


def test_a_version_without_levels_is_only_given_less_workspace():
    assert steps(has_levels=False) == [(4096, None)]


def test_nothing_else_that_was_asked_for_changes():
    asked = BuildOptions(labels=("a", "b"), tf32=True, dla_core=1)

    assert all(
        (step.labels, step.tf32, step.dla_core) == (("a", "b"), True, 1) for step in lighter(asked, 64, has_levels=True)
    )
