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
