"""From the bytes of an image file to pixels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from app import IMAGE_PIXELS_MAX
from app.domain.errors import ImageRejected
from app.domain.file_names import AT_MISSING, is_file_name

Image = NDArray[np.uint8]  # (height, width, 3), B, G, R as OpenCV decodes it, or (height, width) when grey

# Images are decoded side by side already. OpenCV's own threads wait awake for each other: with four of them an image
# took 3.2 to 4.4 ms of processor time instead of 1.8, and came no sooner.
cv2.setNumThreads(1)

_GRAY = {1: cv2.IMREAD_GRAYSCALE, **{n: getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{n}") for n in (2, 4, 8)}}
_COLOR = {1: cv2.IMREAD_COLOR, **{n: getattr(cv2, f"IMREAD_REDUCED_COLOR_{n}") for n in (2, 4, 8)}}
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")
_HEAD_BYTES = 12  # as many as tell a webp
_SIZED = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of frames, which begin with their size
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a segment


def decoded(data: bytes | memoryview, *, is_gray: bool, denominator: int = 1) -> Image:
    """Decode a jpeg, png, bmp or webp, turned upright by its EXIF orientation.

    Args:
        denominator: 1, 2, 4 or 8; a jpeg has its sides divided by it (rounded up), before its pixels are computed.

    Returns:
        (height, width) uint8 for grey, else (height, width, 3) uint8 in the order B, G, R.

    Raises:
        ImageRejected: not an image, damaged, or more than 10^8 pixels.
    """
    image = None
    if _is_read(bytes(data[:_HEAD_BYTES])):
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), (_GRAY if is_gray else _COLOR)[denominator])
        except cv2.error as error:
            raise ImageRejected(
                "The image has too many pixels or is damaged.", hint="Send an image of at most 100 megapixels."
            ) from error
    if image is None:
        raise _refused(data)
    return np.asarray(image, dtype=np.uint8)


def _is_read(head: bytes) -> bool:
    """Whether it begins as one of the four kinds: OpenCV has decoders of many more, which strangers need not reach."""
    return head.startswith(_MAGIC) or (head[8:] == b"WEBP" and head.startswith(b"RIFF"))


def _refused(data: bytes | memoryview) -> ImageRejected:
    if not len(data):
        return ImageRejected(
            "The image has no bytes.", hint="Check the path after the @ of curl's --data-binary @… or -F image=@…."
        )
    return ImageRejected(
        f"The {len(data)} bytes are not an image that can be decoded.",
        hint=AT_MISSING if is_file_name(data) else "Send a jpeg, png, bmp or webp file.",
    )


def jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Width and height as a jpeg's head tells them, whatever its EXIF orientation.

    Returns:
        None: it is no jpeg, is cut off before that, or has more pixels than are decoded.

    Source:
        ITU-T T.81, B.1.1.4 and B.2.2.
    """
    if bytes(data[:2]) != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _BARE:
            at += 2
        elif marker in _SIZED:
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return (width, height) if 0 < width * height <= IMAGE_PIXELS_MAX else None
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
