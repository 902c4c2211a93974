"""TensorRT's own INT8 calibration, fed with samples from device buffers; versions up to 10 have it."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from app.backends.base import Samples
from app.backends.tensorrt.cuda import Buffer, Cuda
from app.domain.builds import Ranging
from app.domain.errors import CompileFailed
from app.domain.tensors import ANY, Shape, Tensors

log = logging.getLogger(__name__)

_ROWS_MAX = 8  # rows of a calibration batch
_BASES = {Ranging.ENTROPY: "IInt8EntropyCalibrator2", Ranging.MINMAX: "IInt8MinMaxCalibrator"}


def cache_file(folder: Path, trt: Any, model: str, samples: Samples, ranging: Ranging | None) -> Path:
    """Where the calibration of this model with these samples is kept.

    Args:
        model: digest of the ONNX file.
    """
    named = "\n".join((model, samples.key, base_name(ranging), trt.__version__))
    return folder / f"calibration-{hashlib.sha256(named.encode()).hexdigest()[:32]}.cache"


def base_name(ranging: Ranging | None) -> str:
    """TensorRT's name of the calibrator; entropy is what it recommends for convolutions.

    Raises:
        CompileFailed: it has none for that way.
    """
    if ranging is None:
        ranging = Ranging.ENTROPY
    if ranging not in _BASES:
        raise CompileFailed(
            f"TensorRT's calibrator has no ranging {ranging.value}.",
            hint=f"Use int8_ranging {' or '.join(kind.value for kind in _BASES)}, or int8_method qdq.",
        )
    return _BASES[ranging]


class Feed:
    """Hands batch after batch to the calibrator, and remembers what went wrong: TensorRT itself goes on without."""

    def __init__(
        self,
        cuda: Cuda,
        samples: Samples,
        shapes: dict[str, Shape],
        dtypes: dict[str, np.dtype[Any]],
        failed: Callable[[], None],
    ) -> None:
        """Prepare batches that fit the network.

        Args:
            shapes: of the network's inputs; ANY where a length is open.
            dtypes: of the network's inputs, as TensorRT computes them.
            failed: told when there is a failure.

        Raises:
            CompileFailed: there are fewer samples than rows in the network's fixed batch.
        """
        self._cuda = cuda
        self._samples = samples
        self._dtypes = dtypes
        self._failed = failed
        self.rows = _rows(samples.count, shapes)
        self._batches: Iterator[Tensors] | None = None
        self._buffers: dict[str, Buffer] = {}
        self.fed = 0
        self.failure: Exception | None = None

    def shapes(self) -> dict[str, Shape]:
        """Shapes of one batch, by input."""
        return {name: tensor.shape for name, tensor in next(self._samples.batches(self.rows)).items()}

    def addresses(self, names: list[str]) -> list[int] | None:
        """The next batch on the device, in the order of the names; None after the last, or after a failure."""
        try:
            return self._next(names)
        except Exception as error:  # TensorRT would take it for the end of the samples
            self.failure = error
            self._failed()
            return None

    def close(self) -> None:
        while self._buffers:
            self._buffers.popitem()[1].close()

    def _next(self, names: list[str]) -> list[int] | None:
        if self._batches is None:
            self._batches = self._samples.batches(self.rows)
        batch = next(self._batches, None)
        if batch is None or any(len(batch[name]) < self.rows for name in names if batch[name].ndim):
            return None  # the end: TensorRT reads whole batches only
        self.fed += self.rows
        return [self._sent(name, batch) for name in names]

    def _sent(self, name: str, batch: Tensors) -> int:
        tensor = np.ascontiguousarray(batch[name], self._dtypes[name])
        if name not in self._buffers:
            self._buffers[name] = self._cuda.buffer(tensor.nbytes)
        self._cuda.send(self._buffers[name], tensor)
        return self._buffers[name].address


def calibrator_over(trt: Any, feed: Feed, ranging: Ranging | None, cache: Path) -> Any:
    """A calibrator of TensorRT's kind that reads and keeps its result in `cache`."""
    base: Any = getattr(trt, base_name(ranging))

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self) -> int:
            return feed.rows

        def get_batch(self, names: list[str]) -> list[int] | None:
            return feed.addresses(list(names))

        def read_calibration_cache(self) -> bytes | None:
            return _kept(cache)

        def write_calibration_cache(self, found: Any) -> None:
            if feed.failure is None:
                _keep(cache, bytes(found))

    return Calibrator()


def _kept(cache: Path) -> bytes | None:
    try:
        found = cache.read_bytes()
        os.utime(cache)  # what was not used for long is removed by others
    except FileNotFoundError:
        return None
    return found or None


def _keep(cache: Path, found: bytes) -> None:
    """Keep it for the next build; that it cannot be kept is no reason to fail this one."""
    draft = cache.with_suffix(".draft")
    try:
        draft.write_bytes(found)
        draft.replace(cache)
    except OSError as error:
        log.warning("the calibration cache was not kept: %s", error)


def _rows(count: int, shapes: dict[str, Shape]) -> int:
    """Rows of a batch: what the network fixes, else the most that leave no sample out."""
    fixed = [shape[0] for shape in shapes.values() if shape and shape[0] != ANY]
    rows = fixed[0] if fixed else max(rows for rows in range(1, _ROWS_MAX + 1) if count % rows == 0)
    if not 0 < rows <= count:
        raise CompileFailed(
            f"There are {count} calibration samples; one run of the model takes {rows}.",
            hint="Add samples, or export the model with a smaller or a dynamic batch.",
        )
    return rows
