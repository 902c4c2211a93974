"""Networks whose weights do not fit into one ONNX file: they stay beside it all the way, and the engine is one file.

The path of a network of 2 GiB and more, forced upon a small one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from app.backends import registry
from app.build.recipe import build
from app.build.report import Report
from app.build.workdir import BuildSpec
from app.domain.builds import BuildOptions, BuiltEngine, ModelFormat, Precision
from app.domain.errors import EngineUnloadable, ModelTooLarge
from tests import networks
from tests.bench import Bench
from tests.samples import pictures

Built = Callable[..., BuiltEngine]
IMAGES = np.random.default_rng(3).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "work")


@pytest.fixture
def built(bench: Bench, tmp_path: Path) -> Built:
    """Builds a small ResNet sent as an archive, as if its weights were too many."""

    def built(calibration: Path | None = None, **options: Any) -> BuiltEngine:
        model = networks.resnet18(width=8, side=32, classes=10)
        apart = tmp_path / "net.onnx"
        onnx.save_model(model, apart, save_as_external_data=True, location="w.bin", size_threshold=0)
        with zipfile.ZipFile(tmp_path / "net.zip", "w") as archive:
            for name in ("net.onnx", "w.bin"):
                archive.write(tmp_path / name, f"net/{name}")
        bench.work.create(tmp_path / "net.zip", calibration)
        bench.work.clear()
        asked = BuildOptions(**{"backend": "onnxruntime", **options})
        spec = BuildSpec("job", "onnxruntime", asked, 8, format=ModelFormat.ONNX_ARCHIVE, whole_bytes_max=0)
        return build(bench.work, spec, Report(bench.work))

    return built


def test_the_engine_is_one_file_that_answers_as_the_network(built: Built, bench: Bench, tmp_path: Path) -> None:
    told = built(preprocess={"scale": 1 / 255})

    assert told.accuracy.outputs[0].sqnr_db >= 80 and told.signature.rows_max == 8
    assert [("too large" in text) for text in told.warnings] == [True]  # it was not simplified
    assert list(bench.work.root.glob("weights-*.bin")) and not list(bench.work.candidates.iterdir())
    lone = (tmp_path / "elsewhere").mkdir() or tmp_path / "elsewhere" / "engine.bin"
    bench.work.engine.rename(lone)
    found = bench_run(lone, IMAGES)
    np.testing.assert_allclose(found, whole_answer(tmp_path, IMAGES), rtol=1e-3, atol=1e-5)
    assert [path.name for path in lone.parent.iterdir()] == ["engine.bin"]


def test_the_recipe_can_be_folded_into_a_graph_without_its_weights(built: Built) -> None:
    told = built(fold_preprocess=True, preprocess={"resize": "stretch"})

    assert told.signature.inputs[0].dtype.value == "uint8" and told.accuracy.outputs[0].sqnr_db >= 80


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_a_precision_that_changes_the_weights_is_refused(built: Built, tmp_path: Path, precision: Precision) -> None:
    with pytest.raises(ModelTooLarge, match=precision.value) as refused:
        built(pictures(tmp_path / "a.zip", 48, side=32), precision=precision)

    assert "precision=fp32" in refused.value.hint


def test_auto_publishes_what_could_be_built(built: Built) -> None:
    told = built(precision=Precision.AUTO)

    assert told.precision is Precision.FP32
    assert [(one.precision.value, one.accepted) for one in told.candidates][:2] == [("fp32", True), ("fp16", False)]


@pytest.mark.parametrize("damage", ["cut", "torn"])
def test_a_damaged_engine_is_refused(built: Built, bench: Bench, damage: str) -> None:
    built()
    whole = bench.work.engine.read_bytes()
    bench.work.engine.write_bytes(whole[:-100] if damage == "cut" else whole[: len(whole) // 2] + whole[-1000:])

    with pytest.raises(EngineUnloadable):
        registry.backend("onnxruntime").load(bench.work.engine)

    assert not list(bench.work.root.glob(".loading-*"))


def bench_run(engine: Path, images: np.ndarray) -> np.ndarray:
    loaded = registry.backend("onnxruntime").load(engine)
    context = loaded.open_context()
    (answer,) = context.run({loaded.signature.inputs[0].name: images}).values()
    context.close()
    loaded.close()
    return answer


def whole_answer(folder: Path, images: np.ndarray) -> np.ndarray:
    return bench_run(folder / "net.onnx", images)
