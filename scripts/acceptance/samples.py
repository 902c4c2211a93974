"""Made-up pictures, the same on every machine: smooth patches of colour, edges, and grain."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (height, width, 3), in the order B, G, R


def picture(seed: int, width: int, height: int) -> Picture:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    for _ in range(6):
        left, top = int(random.integers(0, width - 8)), int(random.integers(0, height - 8))
        right, bottom = int(random.integers(left + 4, width)), int(random.integers(top + 4, height))
        image[top:bottom, left:right] += random.integers(-60, 61, 3, dtype=np.int16)
    image += random.integers(-6, 7, image.shape, dtype=np.int16)
    return np.clip(image, 0, 255).astype(np.uint8)


def encoded(image: Picture, suffix: str) -> bytes:
    """The picture as a file: `.png` or `.jpg`."""
    written, data = cv2.imencode(suffix, image)
    assert written
    return bytes(data.tobytes())


def calibration_zip(path: Path, count: int, size: tuple[int, int]) -> Path:
    """An archive of `count` pictures of this width and height."""
    with zipfile.ZipFile(path, "w") as archive:
        for seed in range(count):
            archive.writestr(f"{seed:03d}.png", encoded(picture(seed, *size), ".png"))
    return path
