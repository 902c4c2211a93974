"""How fast calibration samples are streamed, against the bare loop of decode and recipe in the same run.

Both read the same zip of JPEGs. The ratio is what counts: the figures themselves follow the processor.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from app.build.samples import SampleSource, surveyed
from app.domain.preprocess import Preprocess, row_from_image
from app.domain.tensors import DType, TensorSpec

SIDE = 224  # of a row
WIDTH, HEIGHT = 640, 480  # of an image
ROUNDS = 3


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    recipe = Preprocess("image", SIDE, SIDE)
    inputs = {"image": TensorSpec("image", DType.FLOAT32, recipe.row_shape)}
    with tempfile.TemporaryDirectory() as folder:
        path = _written(Path(folder) / "images.zip", count)
        source = SampleSource(path, inputs, recipe)
        survey = surveyed(source)
        print(f"{count} JPEGs of {WIDTH}×{HEIGHT} to rows of {SIDE}×{SIDE}, best of {ROUNDS}\n")
        print("| | images/s | of the bare loop |\n|---|---|---|")
        bare = _rate(lambda: _bare(path, recipe), count)
        print(f"| bare loop: read, decode, recipe; one thread | {bare:,.0f} | 100 % |")
        streamed = _rate(lambda: sum(1 for _ in survey.everything().batches(8)), survey.everything().count)
        print(f"| calibration batches of 8 | {streamed:,.0f} | {streamed / bare:.0%} |")
        surveying = _rate(lambda: surveyed(source), count)
        print(f"| survey: every row made, hashed and looked at | {surveying:,.0f} | {surveying / bare:.0%} |")
    print(f"\npeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


def _written(path: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(count):
            coarse = random.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
            image = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
            archive.writestr(f"{index:04d}.jpg", cv2.imencode(".jpg", image)[1].tobytes())
    return path


def _bare(path: Path, recipe: Preprocess) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            row_from_image(archive.read(info), recipe)


def _rate(work: Callable[[], object], count: int) -> float:
    times_s = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - started)
    return count / min(times_s)


if __name__ == "__main__":
    main()
