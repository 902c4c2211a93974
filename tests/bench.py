"""The build recipe in this process, in a folder of its own: what it makes, what it tells, how it fails."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import onnx
import pytest

from app.backends import registry
from app.build.recipe import build
from app.build.report import Report
from app.build.workdir import BuildSpec, ProgressReader, WorkDir
from app.domain.builds import BuildOptions, BuiltEngine
from app.domain.errors import ServiceError
from app.domain.jobs import EventKind
from app.domain.tensors import Tensors


class Bench:
    """Simplification, which costs a process, only where it is asked for."""

    def __init__(self, root: Path) -> None:
        self.work = WorkDir(root)
        self.work.root.mkdir()
        self.cache = root / "kept"

    def build(
        self, model: onnx.ModelProto | bytes, rows: int = 32, calibration: Path | None = None, **options: Any
    ) -> BuiltEngine:
        data = model if isinstance(model, bytes) else model.SerializeToString()
        uploaded = self.work.root / "uploaded"
        uploaded.write_bytes(data)
        self.work.create(uploaded, calibration)
        self.work.clear()
        asked = BuildOptions(**{"simplify": False, "backend": "onnxruntime", **options})
        return build(self.work, BuildSpec("job", asked.backend, asked, rows, str(self.cache)), Report(self.work))

    def fail(self, model: onnx.ModelProto | bytes, kind: type[ServiceError], **options: Any) -> ServiceError:
        with pytest.raises(kind) as caught:
            self.build(model, **options)
        assert str(self.work.root) not in caught.value.detail
        return caught.value

    def run(self, inputs: Tensors) -> Tensors:
        with (
            closing(registry.backend("onnxruntime").load(self.work.engine)) as engine,
            closing(engine.open_context()) as context,
        ):
            return context.run(inputs)

    def told(self, kind: EventKind) -> list[str]:
        return [line.message for line in ProgressReader(self.work).new_lines() if line.kind is kind]
