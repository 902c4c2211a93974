"""How far answers are from those of the network as uploaded, reckoned here and not by the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.domain.builds import HALF_TOLERANCE, INT8_TOLERANCE, TF32_TOLERANCE, Tolerance

Rows = NDArray[np.float32]
_CAP_DB = 200.0  # equal to the last bit


@dataclass(frozen=True)
class Agreement:
    sqnr_db: float  # 10·log10(Σ ref² / Σ (ref − answer)²)
    cosine: float
    max_rel: float  # max |ref − answer| / max |ref|

    def problems(self, wanted: Tolerance) -> list[str]:
        """What is outside of the tolerance; NaN always is."""
        claims = {
            f"SQNR {self.sqnr_db:.1f} dB, wanted ≥ {wanted.sqnr_db:g}": self.sqnr_db >= wanted.sqnr_db,
            f"cosine {self.cosine:.6f}, wanted ≥ {wanted.cosine:g}": self.cosine >= wanted.cosine,
            f"largest error {self.max_rel:.2g}, wanted ≤ {wanted.max_rel:g}": self.max_rel <= wanted.max_rel,
        }
        return [claim for claim, holds in claims.items() if not holds]


class Source:
    """The network as uploaded, run in this process by ONNX Runtime."""

    def __init__(self, model: bytes, name: str) -> None:
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._input = name

    def run(self, rows: Rows) -> Rows:
        (output,) = self._session.run(None, {self._input: rows})
        return np.asarray(output, np.float32)


def agreement(expected: Sequence[Rows], answers: Sequence[NDArray[np.generic]]) -> Agreement:
    """Over all answers together; a wrong shape agrees in nothing."""
    if [part.shape for part in expected] != [part.shape for part in answers]:
        return Agreement(-_CAP_DB, -1.0, np.inf)
    wanted = np.concatenate([part.ravel() for part in expected]).astype(np.float64)
    found = np.concatenate([part.ravel() for part in answers]).astype(np.float64)
    noise, signal = float(np.sum((wanted - found) ** 2)), float(np.sum(wanted**2))
    sqnr_db = min(_CAP_DB, 10 * float(np.log10(signal / noise))) if noise else _CAP_DB
    cosine = float(wanted @ found / (np.linalg.norm(wanted) * np.linalg.norm(found)))
    return Agreement(sqnr_db, cosine, float(np.abs(wanted - found).max() / np.abs(wanted).max()))


def tolerance_for(precision: str, *, tf32: bool, asked: Mapping[str, float]) -> Tolerance:
    """What the service holds an engine to.

    Args:
        asked: fields of Tolerance that the build was asked for; the rest follows from the precision.
    """
    allowed = TF32_TOLERANCE if tf32 else Tolerance()
    return replace({"fp16": HALF_TOLERANCE, "int8": INT8_TOLERANCE}.get(precision, allowed), **asked)
