"""What a recipe makes of pixels that are known."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import ImageRejected, InvalidOption
from app.domain.preprocess import Color, Interpolation, Layout, Preprocess, Resize, default_preprocess, row_from_image
from app.domain.resize import antialiased
from app.domain.tensors import DType, TensorSpec
from tests import samples


def recipe(width: int, height: int, **changes: Any) -> Preprocess:
    """Grey pixels 0..255 as float32, unless changed."""
    return Preprocess("x", width, height, **{"color": Color.GRAY, "scale": 1.0, **changes})


def encoded(pixels: Any, suffix: str = ".png") -> bytes:
    """Pixels in the order (row, column), grey or B, G, R."""
    return cv2.imencode(suffix, np.asarray(pixels, np.uint8))[1].tobytes()


def plane(data: bytes, applied: Preprocess) -> list[list[float]]:
    """The only channel of the row, as numbers."""
    rows: list[list[float]] = row_from_image(data, applied)[0].tolist()
    return rows


ONE_PIXEL = encoded([[[30, 20, 10]]])  # blue 30, green 20, red 10


# --- resize and interpolation ------------------------------------------------------------------------------------


def test_an_image_of_the_right_size_is_taken_as_it_is() -> None:
    assert plane(encoded([[1, 2], [3, 4]]), recipe(2, 2)) == [[1, 2], [3, 4]]


def test_stretch_ignores_the_aspect_ratio() -> None:
    enlarged = plane(encoded([[10, 20]]), recipe(4, 2, interpolation=Interpolation.NEAREST))

    assert enlarged == [[10, 10, 20, 20], [10, 10, 20, 20]]


def test_area_averages_the_pixels_that_it_joins() -> None:
    pixels = encoded([[0, 10, 100, 110], [20, 30, 120, 130]])

    assert plane(pixels, recipe(2, 1, interpolation=Interpolation.AREA)) == [[15, 115]]


@pytest.mark.parametrize("way", [Interpolation.ANTIALIAS, Interpolation.AREA, Interpolation.LINEAR])
def test_these_enlarge_linearly(way: Interpolation) -> None:
    assert plane(encoded([[0, 100]]), recipe(4, 1, interpolation=way)) == [[0, 25, 75, 100]]


def test_antialiasing_is_what_a_recipe_does_by_itself() -> None:
    pixels = samples.photograph(63, 40)

    row = row_from_image(encoded(pixels), recipe(20, 20, color=Color.BGR, layout=Layout.NHWC))

    np.testing.assert_array_equal(row, antialiased(pixels, 20, 20))


def test_linear_takes_the_two_nearest_pixels() -> None:
    shrunk = plane(encoded([[0, 10, 90, 100, 200, 220]]), recipe(2, 1, interpolation=Interpolation.LINEAR))

    assert shrunk == [[10, 200]]  # centres 1 and 4: no antialiasing


def test_cubic_weighs_four_pixels() -> None:
    enlarged = plane(encoded([[100, 100, 200, 200]]), recipe(8, 1, interpolation=Interpolation.CUBIC))

    assert enlarged[0][3:5] == [123, 177]  # weights -0.105, 0.879, 0.262, -0.035


def test_letterbox_keeps_the_aspect_ratio_and_centres_the_image() -> None:
    boxed = plane(encoded([[1, 2, 3, 4], [5, 6, 7, 8]]), recipe(4, 4, resize=Resize.LETTERBOX))

    assert boxed == [[114] * 4, [1, 2, 3, 4], [5, 6, 7, 8], [114] * 4]


def test_letterbox_puts_the_odd_pixel_of_the_border_behind() -> None:
    boxed = plane(encoded([[1], [2]]), recipe(4, 2, resize=Resize.LETTERBOX, pad=0))

    assert boxed == [[0, 1, 0, 0], [0, 2, 0, 0]]


def test_letterbox_enlarges_a_small_image_up_to_the_nearer_border() -> None:
    boxed = plane(
        encoded([[7], [9]]), recipe(6, 4, resize=Resize.LETTERBOX, pad=9, interpolation=Interpolation.NEAREST)
    )

    assert boxed == [[9, 9, 7, 7, 9, 9], [9, 9, 7, 7, 9, 9], [9, 9, 9, 9, 9, 9], [9, 9, 9, 9, 9, 9]]


def test_the_border_of_a_letterbox_goes_through_the_same_normalisation() -> None:
    boxed = plane(encoded([[0, 0]]), recipe(2, 2, resize=Resize.LETTERBOX, pad=51, scale=1 / 255))

    np.testing.assert_allclose(boxed[1], [0.2, 0.2], rtol=1e-6)


def test_center_crop_cuts_out_of_the_middle_as_torchvision_does() -> None:
    # Resize(8) leaves 13×8 alone; CenterCrop(7) begins at round((8 - 7) / 2) = 0 and round((13 - 7) / 2) = 3.
    columns = np.tile(np.arange(13), (8, 1)) + 20 * np.arange(8)[:, None]

    assert plane(encoded(columns), recipe(7, 7, resize=Resize.CENTER_CROP)) == columns[0:7, 3:10].tolist()


def test_center_crop_rounds_the_longer_side_down_as_torchvision_does() -> None:
    # Resize(8) of 11×6: int(8 · 11 / 6) = 14 wide. CenterCrop(7) begins at columns round(3.5) = 4, rows round(0.5) = 0.
    pixels = np.arange(11) + 20 * np.arange(6)[:, None]

    cropped = plane(encoded(pixels), recipe(7, 7, resize=Resize.CENTER_CROP, interpolation=Interpolation.NEAREST))

    columns = [3, 3, 4, 5, 6, 7, 7]  # floor(j · 11 / 14) for j = 4…10
    rows = [0, 0, 1, 2, 3, 3, 4]  # floor(j · 6 / 8) for j = 0…6
    assert cropped == pixels[np.ix_(rows, columns)].tolist()


def test_center_crop_works_on_an_upright_image_and_an_oblong_target() -> None:
    # 4×8 to 4×2 without a margin: the width fits, the height is cut to the middle.
    pixels = np.arange(8)[:, None] * np.ones(4)

    cropped = plane(encoded(pixels), recipe(4, 2, resize=Resize.CENTER_CROP, crop=1.0))

    assert cropped == [[3] * 4, [4] * 4]


def test_center_crop_refuses_an_image_so_narrow_that_resizing_it_would_exhaust_the_memory() -> None:
    ribbon = encoded(np.zeros((1, 30_000)))

    with pytest.raises(ImageRejected, match="30000×1 pixels: too long and narrow"):
        row_from_image(ribbon, recipe(224, 224, resize=Resize.CENTER_CROP))


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.sampled_from(list(Resize)))
def test_every_image_becomes_a_row_of_the_recipe_s_shape(
    image_width: int, image_height: int, width: int, height: int, resize: Resize
) -> None:
    data = encoded(np.full((image_height, image_width), 50))

    row = row_from_image(data, recipe(width, height, resize=resize, pad=50))

    assert row.shape == (1, height, width)
    assert (row == 50).all()


# --- colour, layout, numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("color", "channels"), [(Color.RGB, [10, 20, 30]), (Color.BGR, [30, 20, 10]), (Color.GRAY, [18])]
)
@pytest.mark.parametrize("layout", list(Layout))
def test_channels_come_in_the_recipe_s_order_and_place(color: Color, channels: list[int], layout: Layout) -> None:
    row = row_from_image(ONE_PIXEL, recipe(2, 3, color=color, layout=layout))

    axis = 0 if layout is Layout.NCHW else 2
    assert row.shape == ((len(channels), 3, 2) if layout is Layout.NCHW else (3, 2, len(channels)))
    assert (np.moveaxis(row, axis, 0) == np.array(channels).reshape(-1, 1, 1)).all()
    assert row.flags.c_contiguous


def test_a_grey_image_fills_all_channels_of_a_colour_recipe() -> None:
    assert row_from_image(encoded([[77]]), recipe(1, 1, color=Color.RGB)).ravel().tolist() == [77, 77, 77]


def test_the_alpha_channel_of_an_image_is_left_out() -> None:
    assert row_from_image(encoded([[[30, 20, 10, 5]]]), recipe(1, 1, color=Color.RGB)).ravel().tolist() == [10, 20, 30]


def test_values_are_scaled_then_centred_then_divided_channel_by_channel() -> None:
    applied = recipe(1, 1, color=Color.RGB, scale=0.1, mean=(1.0, 1.5, 0.0), std=(0.5, 0.25, 2.0))

    row = row_from_image(ONE_PIXEL, applied)

    np.testing.assert_allclose(row.ravel(), [0.0, 2.0, 1.5], atol=1e-6)


def test_the_defaults_give_zero_to_one() -> None:
    row = row_from_image(encoded([[0, 51, 255]]), Preprocess("x", 3, 1, color=Color.GRAY))

    np.testing.assert_allclose(row.ravel(), [0, 0.2, 1], rtol=1e-6)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.FLOAT32, DType.FLOAT64])
def test_every_float_type_holds_the_same_numbers(dtype: DType) -> None:
    row = row_from_image(encoded([[100, 200]]), recipe(2, 1, dtype=dtype, mean=(50.0,), std=(0.5,)))

    assert row.dtype == dtype.numpy
    assert row.ravel().tolist() == [100, 300]


@pytest.mark.parametrize(
    ("dtype", "changes", "numbers"),
    [
        (DType.UINT8, {}, [0, 101, 255]),
        (DType.UINT8, {"scale": 0.5}, [0, 50, 128]),  # rounded half to even
        (DType.UINT8, {"scale": 2.0, "mean": (10.0,)}, [0, 192, 255]),  # clipped
        (DType.INT8, {"mean": (128.0,)}, [-128, -27, 127]),
        (DType.INT8, {}, [0, 101, 127]),
        (DType.INT32, {"scale": -10.0}, [0, -1010, -2550]),
    ],
)
def test_integers_are_rounded_and_clipped(dtype: DType, changes: dict[str, Any], numbers: list[int]) -> None:
    row = row_from_image(encoded([[0, 101, 255]]), recipe(3, 1, dtype=dtype, **changes))

    assert row.dtype == dtype.numpy
    assert row.ravel().tolist() == numbers


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".webp"])
def test_every_promised_format_is_read(suffix: str) -> None:
    row = row_from_image(encoded(np.full((8, 8), 100), suffix), recipe(8, 8))

    np.testing.assert_allclose(row, 100, atol=2)


def test_a_photo_is_turned_upright_as_its_exif_says() -> None:
    upright = np.repeat([[0], [255]], 16, axis=0).repeat(16, axis=1)  # dark above, light below
    lying = encoded(np.rot90(upright), ".jpg")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"
    photo = lying[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + lying[2:]

    row = row_from_image(photo, recipe(16, 32))

    assert row[0, :14].max() < 20
    assert row[0, 18:].min() > 235


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Dear Sir or Madam", "The 17 bytes are not an image"),
        (encoded(np.zeros((64, 64)), ".jpg")[:100], "The 100 bytes are not an image"),
        (encoded(np.zeros((64, 64)))[:-30], "are not an image"),
    ],
)
def test_what_cannot_be_decoded_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageRejected, match=message) as caught:
        row_from_image(data, recipe(4, 4))

    assert caught.value.hint == "Send a jpeg, png, bmp or webp file."


def test_an_image_that_claims_too_many_pixels_is_refused_before_they_are_allocated(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    program = (
        "import pathlib; from app.domain.decode import decoded; "
        f"decoded(pathlib.Path({str(tmp_path / 'bomb.png')!r}).read_bytes(), is_gray=False)"
    )

    # A process of its own: OpenCV takes the limit when it is first imported, and here that was this module's doing.
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert "ImageRejected: The image has too many pixels" in child.stderr


# --- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "size is 0×4"),
        ({"mean": (0.0, 0.0)}, r"mean has 2 values; gray takes 1 value\."),
        ({"std": (0.0,)}, "must be finite and not 0"),
        ({"scale": float("nan")}, "must be finite and not 0"),
        ({"scale": 1e39}, "must be finite and not 0, its mean finite, as float32"),
        ({"std": (1e-40,)}, "must be finite and not 0"),
        ({"crop": 0.0}, "crop is 0.0"),
        ({"pad": 256}, "pad 256"),
        ({"dtype": DType.BOOL}, "dtype is bool"),
        ({"dtype": DType.INT64}, "dtype is int64"),
    ],
)
def test_a_recipe_that_cannot_be_applied_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        recipe(**{"width": 4, "height": 4, **changes})


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((-1, 3, 8, 6), DType.FLOAT32, Preprocess("x", 6, 8)),
        ((1, 1, 8, 6), DType.FLOAT16, Preprocess("x", 6, 8, color=Color.GRAY, dtype=DType.FLOAT16)),
        ((1, 8, 6, 3), DType.FLOAT32, Preprocess("x", 6, 8, layout=Layout.NHWC)),
        ((1, 3, 8, 6), DType.UINT8, Preprocess("x", 6, 8, scale=1.0, dtype=DType.UINT8)),
        ((1, 3, -1, 6), DType.FLOAT32, None),
        ((1, 4, 8, 6), DType.FLOAT32, None),
        ((1, 3, 8, 6), DType.INT64, None),
        ((3, 8, 6), DType.FLOAT32, None),
    ],
)
def test_an_image_shaped_input_suggests_its_recipe(
    shape: tuple[int, ...], dtype: DType, expected: Preprocess | None
) -> None:
    assert default_preprocess(TensorSpec("x", dtype, shape)) == expected
