"""What one build is asked for, and where it keeps what the next one can use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.backends.base import Samples
from app.backends.tensorrt.calibrator import cache_file
from app.backends.tensorrt.driver import Gpu
from app.backends.tensorrt.onnxfile import OnnxFile
from app.domain.builds import BuildOptions
from app.domain.tensors import ShapeRange


@dataclass(frozen=True)
class Request:
    onnx: OnnxFile
    options: BuildOptions
    ranges: Mapping[str, ShapeRange]
    calibration: Samples | None
    cache: Path  # a folder
    contexts: int  # that the engine must be able to open
    rows: int  # the largest batch where the request limits none

    def timing_file(self, trt: Any, gpu: Gpu) -> Path:
        """What TensorRT measured of its kernels on this device; by precision, as it refuses that of another."""
        named = f"{gpu.name} {gpu.compute_capability} {trt.__version__} {self.options.precision.value}"
        return self.cache / f"timing-{re.sub(r'[^A-Za-z0-9.]+', '-', named)}.cache"

    def calibration_file(self, trt: Any, samples: Samples) -> Path:
        return cache_file(self.cache, trt, self.onnx.digest(), samples, self.options.int8_ranging)
