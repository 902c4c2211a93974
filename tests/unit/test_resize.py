"""How near images are shrunk to what Pillow makes of them, which is what torchvision's networks saw."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.domain.decode import Image
from app.domain.resize import antialiased
from tests.samples import photograph, shrunk_by_pillow

# (width, height) before and after: little, twice, more than four times, odd, on one axis only, each axis its own way.
SIZES = [
    ((640, 480), (341, 256)),
    ((640, 480), (224, 224)),
    ((512, 512), (256, 256)),
    ((451, 301), (250, 160)),
    ((1411, 1411), (224, 224)),
    ((1000, 872), (64, 48)),
    ((301, 1200), (224, 100)),
    ((600, 200), (150, 200)),
    ((200, 601), (200, 64)),
    ((900, 100), (90, 170)),
]


def distance(found: Any, wanted: Any) -> float:
    """The mean difference of a pixel, of 0..255."""
    return float(np.abs(found.astype(float) - wanted).mean())


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_it_is_half_as_far_from_pillow_s_as_opencv_s_area(before: tuple[int, int], after: tuple[int, int]) -> None:
    image = photograph(*before)
    wanted = shrunk_by_pillow(image, *after)

    found = distance(antialiased(image, *after), wanted)

    assert found < 1
    assert found < 0.5 * distance(cv2.resize(image, after, interpolation=cv2.INTER_AREA), wanted)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_nothing_is_shifted(before: tuple[int, int], after: tuple[int, int]) -> None:
    """A mirrored image gives the mirrored result; half a pixel of shift would make a difference of many times that."""
    image = photograph(*before)
    for axis in (0, 1):
        there = antialiased(np.ascontiguousarray(np.flip(image, axis)), *after)

        assert np.abs(np.flip(there, axis).astype(int) - antialiased(image, *after)).max() <= 2


def test_a_grey_image_is_shrunk_as_a_channel_of_a_coloured_one_is() -> None:
    image = photograph(500, 375)

    found = antialiased(image, 224, 160)

    for channel in range(3):
        grey = antialiased(np.ascontiguousarray(image[:, :, channel]), 224, 160)
        assert grey.shape == (160, 224)
        np.testing.assert_array_equal(grey, found[:, :, channel])


@pytest.mark.parametrize("shrinks", [1.5, 1.75, 2.14, 2.5, 2.86, 3.1, 3.6, 4.3, 6, 9, 13])
def test_stripes_of_no_width_come_through_worse_than_with_opencv_s_area(shrinks: float) -> None:
    """Also those that are too fine for the result and would be seen as others, were they not evened out."""
    width = round(480 / shrinks)
    ours, areas = [], []
    for waves in np.linspace(0.02, 0.5, 25):  # a pixel
        row = 127.5 + 127 * np.sin(2 * np.pi * waves * np.arange(480) + 1)
        stripes: Image = np.tile(row.round().astype(np.uint8), (4, 1))
        wanted = shrunk_by_pillow(stripes, width, 4)[:, 1:-1]
        area = cv2.resize(stripes, (width, 4), interpolation=cv2.INTER_AREA)
        ours.append(np.abs(antialiased(stripes, width, 4)[:, 1:-1] - wanted).max())
        areas.append(np.abs(area[:, 1:-1] - wanted).max())

    assert np.mean(ours) < 0.8 * np.mean(areas)
    assert max(ours) < max(areas)


@settings(max_examples=200)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(0, 255))
@example(60, 60, 1, 1, 255)
@example(1, 1, 60, 60, 7)
def test_every_size_becomes_every_other_and_an_even_image_stays_even(
    width: int, height: int, to_width: int, to_height: int, value: int
) -> None:
    found = antialiased(np.full((height, width, 3), value, np.uint8), to_width, to_height)

    assert found.shape == (to_height, to_width, 3)
    assert (found == value).all()
