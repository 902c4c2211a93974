"""Calibration archives for tests, and images that are unlike each other."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from app.domain.decode import Image


def picture(seed: int, width: int = 64, height: int = 64) -> Image:
    """Smooth patches of colour, from black to white."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def photograph(width: int, height: int) -> Image:
    """Patches of colour with smaller ones on them, down to what a resize cannot keep."""
    random = np.random.default_rng(width * height)
    made = np.full((height, width, 3), 128.0)
    for cells, strength in ((6, 80), (40, 40), (160, 20)):
        coarse = random.normal(0, strength, (cells, cells, 3))
        made += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(made, 0, 255), np.uint8)


def shrunk_by_pillow(image: Image, width: int, height: int) -> Any:
    """As Pillow's bilinear filter shrinks, which is torchvision's: a triangle as wide as two pixels of the result.

    Source:
        Pillow's src/libImaging/Resample.c.
    """
    down, across = _triangles(image.shape[0], height), _triangles(image.shape[1], width)
    pixels = image.astype(float).reshape(*image.shape[:2], -1)
    found = np.einsum("ij,jkc,lk->ilc", down, pixels, across, optimize=True)
    return found.reshape(height, width, *image.shape[2:])


def _triangles(before: int, after: int) -> Any:
    scale = max(1.0, before / after)
    centres, places = (np.arange(after) + 0.5) * before / after, np.arange(before) + 0.5
    triangles = np.maximum(0, 1 - np.abs(places[None, :] - centres[:, None]) / scale)
    return triangles / triangles.sum(axis=1, keepdims=True)


def encoded(image: Any, suffix: str = ".jpg") -> bytes:
    written, data = cv2.imencode(suffix, image)
    assert written
    return data.tobytes()


def npy(array: Any) -> bytes:
    return _saved(lambda buffer: np.save(buffer, array))


def npz(**arrays: Any) -> bytes:
    return _saved(lambda buffer: np.savez(buffer, **arrays))


def archive(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as written:
        for name, data in files.items():
            written.writestr(name, data)
    return path


def pictures(path: Path, count: int, side: int = 64) -> Path:
    return archive(path, {f"{seed:03d}.jpg": encoded(picture(seed, side, side)) for seed in range(count)})


def _saved(save: Callable[[io.BytesIO], None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()
