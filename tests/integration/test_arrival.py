"""Uploads made into ONNX that the backend at hand can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.build.arrival import arrived
from app.build.report import Report
from app.build.workdir import BuildSpec, WorkDir
from app.domain.builds import BuildOptions, ModelFormat
from app.domain.errors import OpsetUnsupported
from tests.torch_required import needs_torch

PROGRAM = Path(__file__).parents[2] / "examples" / "digits" / "digits.pt2"


def arrival(folder: Path, opset_max: int, **options: int) -> int:
    """The opset that the example's program comes out with."""
    work = WorkDir(folder / "work")
    work.create(PROGRAM)
    spec = BuildSpec("job", "tensorrt", BuildOptions(**options), 32, format=ModelFormat.PT2)
    exported = arrived(work, spec, opset_max, Report(work))
    assert exported is not None
    return exported.opset


def test_an_opset_that_the_backend_does_not_read_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(OpsetUnsupported, match="asks for 18; the backend tensorrt reads opsets up to 17") as refused:
        arrival(tmp_path, 17, opset=18)

    assert "opset=17" in refused.value.hint


@pytest.mark.parametrize("opset_max, opset", [(17, 17), (20, 18)])
def test_an_export_is_never_newer_than_the_backend_reads(tmp_path: Path, opset_max: int, opset: int) -> None:
    needs_torch()  # its programs come out at 18 at least: for 17 they are converted

    assert arrival(tmp_path, opset_max) == opset
