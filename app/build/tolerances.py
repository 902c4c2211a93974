"""How far an engine may be from its source model: by what it was built as, and by what the model itself rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from app.build.graph import Source
from app.domain.builds import HALF_TOLERANCE, INT8_TOLERANCE, TF32_TOLERANCE, Precision, Tolerance

# One engine, the same rows joined or alone: only the order of sums differs, whatever the request tolerates.
_JOINED_TOLERANCE = Tolerance(sqnr_db=60, cosine=0.9999, max_rel=1e-3)


def tolerance_of(
    source: Source,
    asked: Mapping[str, float] | None = None,
    precision: Precision = Precision.FP32,
    *,
    tf32: bool = False,
) -> Tolerance:
    """What was asked for; the rest as the precision and the model's own number formats allow.

    A model that rounds inside itself answers differently whenever two operators are fused, and neither answer is
    the better one. Measured: ResNet-18 in float16, optimised against not: 74 dB.
    """
    if precision is Precision.INT8 or source.is_quantised:
        allowed = INT8_TOLERANCE
    elif precision is Precision.FP16 or source.is_half:
        allowed = HALF_TOLERANCE
    else:
        allowed = TF32_TOLERANCE if tf32 else Tolerance()
    return replace(allowed, **(asked or {}))


def joined_tolerance(source: Source, precision: Precision) -> Tolerance:
    """How far answers to joined rows may be from those to the rows alone."""
    if precision is Precision.FP32 and not source.is_half and not source.is_quantised:
        return _JOINED_TOLERANCE
    return tolerance_of(source, precision=precision)
