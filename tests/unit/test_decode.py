"""Large jpegs are decoded smaller where the recipe antialiases anyway: same cut, nearly the same pixels."""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
import pytest

from app.domain.decode import Image, decoded, jpeg_size
from app.domain.errors import ImageRejected
from app.domain.preprocess import Color, Interpolation, Preprocess, Resize, denominator_of, framed
from tests.samples import photograph, shrunk_by_pillow

PUT_AT = "With curl, put @ before the file's name."
NEAR_DB = 36  # a cut that is a pixel off leaves 16 to 21


def jpeg(image: Image, *options: int) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90, *options])[1].tobytes()


def turned(data: bytes, orientation: int = 6) -> bytes:
    """The jpeg with an EXIF head that has it turned."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


@pytest.mark.parametrize(
    ("data", "detail", "hint"),
    [
        (b"", "no bytes", "curl's --data-binary @… or -F image=@…"),
        (b"photos/cat.jpg", "14 bytes are not an image", PUT_AT),
        (b"no name at all", "14 bytes are not an image", "Send a jpeg"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_do(data: bytes, detail: str, hint: str) -> None:
    with pytest.raises(ImageRejected) as refused:
        decoded(data, is_gray=False)

    assert detail in refused.value.detail and hint in refused.value.hint


@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp", ".webp"])
def test_the_four_kinds_are_decoded_from_bytes_and_from_views_of_them(kind: str) -> None:
    data = cv2.imencode(kind, photograph(16, 12))[1].tobytes()

    for given in (data, memoryview(data)):
        assert decoded(given, is_gray=False).shape == (12, 16, 3)


@pytest.mark.parametrize("kind", [".tif", ".ppm", ".ras", ".hdr", ".pfm"])
def test_no_other_decoder_of_opencv_s_is_reached(kind: str) -> None:
    image = photograph(16, 12)
    data = cv2.imencode(kind, image if kind in (".tif", ".ppm", ".ras") else image.astype(np.float32))[1].tobytes()
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None

    with pytest.raises(ImageRejected, match="not an image that can be decoded"):
        decoded(data, is_gray=False)


def recipe(width: int, height: int, **changes: Any) -> Preprocess:
    return Preprocess("x", width, height, **changes)


def decoded_in_full(data: bytes, applied: Preprocess) -> Image:
    """What the recipe made of the image if it were no jpeg."""
    whole = decoded(data, is_gray=applied.color is Color.GRAY)
    return framed(cv2.imencode(".bmp", whole)[1].tobytes(), applied)


def nearness_db(found: Image, wanted: Image) -> float:
    return float(10 * np.log10(255**2 / np.mean((found.astype(float) - wanted) ** 2)))


@pytest.mark.parametrize("color", [Color.RGB, Color.GRAY])
@pytest.mark.parametrize("resize", [*Resize])
@pytest.mark.parametrize(("width", "height"), [(1280, 720), (722, 1284), (2016, 1512), (1000, 1000)])
def test_a_large_jpeg_is_framed_as_if_it_were_decoded_in_full(
    width: int, height: int, resize: Resize, color: Color
) -> None:
    applied = recipe(64, 48, resize=resize, color=color, pad=255)
    for data in (jpeg(photograph(width, height)), turned(jpeg(photograph(width, height)))):
        found, wanted = framed(data, applied), decoded_in_full(data, applied)

        assert denominator_of(width, height, applied) > 1
        assert nearness_db(found, wanted) > NEAR_DB
        if resize is Resize.LETTERBOX:
            np.testing.assert_array_equal(is_border(found), is_border(wanted))


def is_border(image: Image) -> Image:
    """Which rows and columns are nothing but padding."""
    flat = image if image.ndim == 2 else image.min(axis=2)
    return np.concatenate([(flat == 255).all(axis=0), (flat == 255).all(axis=1)])


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1280, 720), (2016, 1512), (4032, 3024)])
def test_it_is_still_nearer_to_pillow_s_than_opencv_s_area_of_all_pixels(width: int, height: int) -> None:
    data, applied = jpeg(photograph(width, height)), recipe(224, 224)
    wanted = shrunk_by_pillow(decoded(data, is_gray=False), 224, 224)
    area = framed(data, recipe(224, 224, interpolation=Interpolation.AREA))

    found_db = nearness_db(framed(data, applied), wanted)

    assert denominator_of(width, height, applied) > 1
    assert found_db > nearness_db(area, wanted) + 2


@pytest.mark.parametrize("way", sorted({*Interpolation} - {Interpolation.ANTIALIAS}))
def test_a_recipe_that_names_a_way_of_opencv_s_has_all_of_them_decoded(way: Interpolation) -> None:
    data, applied = jpeg(photograph(1280, 960)), recipe(64, 64, interpolation=way)

    np.testing.assert_array_equal(framed(data, applied), decoded_in_full(data, applied))


def test_other_formats_are_decoded_in_full() -> None:
    image, applied = photograph(1280, 960), recipe(64, 64)
    wanted = framed(cv2.imencode(".bmp", image)[1].tobytes(), applied)

    np.testing.assert_array_equal(framed(cv2.imencode(".png", image)[1].tobytes(), applied), wanted)


@pytest.mark.parametrize(
    ("width", "height", "changes", "denominator"),
    [
        (4032, 3024, {}, 8),
        (1920, 1080, {}, 2),
        (1280, 720, {}, 2),
        (640, 480, {}, 1),  # half of it would hardly be more than is wanted
        (628, 628, {}, 2),
        (626, 626, {}, 1),
        (4032, 504, {}, 1),  # its height is wanted as it is
        (4032, 504, {"resize": Resize.LETTERBOX}, 8),
        (720, 718, {"resize": Resize.CENTER_CROP}, 2),
        (720, 716, {"resize": Resize.CENTER_CROP}, 1),
        (100, 100, {}, 1),
        (4031, 3024, {}, 1),
        (4030, 3026, {}, 2),
        (4032, 3024, {"interpolation": Interpolation.AREA}, 1),
    ],
)
def test_a_jpeg_keeps_more_pixels_than_are_wanted(
    width: int, height: int, changes: dict[str, Any], denominator: int
) -> None:
    applied = recipe(224, 224, **changes)

    assert denominator_of(width, height, applied) == denominator_of(height, width, applied) == denominator


def test_opencv_starts_no_threads_of_its_own() -> None:
    assert cv2.getNumThreads() == 1


# --- the size in a jpeg's head ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)], ids=["baseline", "progressive"])
def test_the_size_is_read_from_the_head(options: tuple[int, ...]) -> None:
    for image in (photograph(37, 21), photograph(37, 21)[:, :, 0]):
        data = jpeg(image, *options)

        assert jpeg_size(data) == jpeg_size(memoryview(data)) == jpeg_size(turned(data)) == (37, 21)


def test_fill_bytes_and_segments_before_the_frame_are_passed_over() -> None:
    data = jpeg(photograph(37, 21))
    thumbnail = b"\xff\xe2" + struct.pack(">H", 2 + len(data)) + data

    assert jpeg_size(data[:2] + b"\xff\xff" + thumbnail[1:] + b"\xff\x01" + data[2:]) == (37, 21)


def test_a_head_without_a_size_that_can_be_had_tells_none() -> None:
    data = jpeg(photograph(37, 21))
    frame = data.index(b"\xff\xc0")
    for cut in range(frame + 9):
        assert jpeg_size(data[:cut]) is None
    for size in (b"\0\0\0\x25", b"\xff\xff\xff\xff"):  # nothing; more than 10^8 pixels
        assert jpeg_size(data[: frame + 5] + size + data[frame + 9 :]) is None
    endless = data[:2] + b"\xff\xe0\0\0" * 9
    for other in (b"", b"\xff\xd8", b"\x89PNG", data[2:], endless, data[:2] + b"\xff" * 99):
        assert jpeg_size(other) is None
