"""Calibration archives as rows of a model's inputs: what is read, what is refused, what is held back."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.backends import registry
from app.build.sample_labels import Classes, labels_in
from app.build.samples import ROWS_MAX, SampleSource, Survey, filled, surveyed
from app.domain.builds import BuildOptions
from app.domain.errors import LabelsContradict
from app.domain.preprocess import Preprocess, Resize
from app.domain.tensors import ANY, DType, Signature, Tensors, TensorSpec
from app.serving.pool import EnginePool
from app.serving.service import InferenceService
from tests import networks
from tests.fakes import engine_record
from tests.samples import archive, encoded, npy, npz, picture, pictures

RECIPE = Preprocess("image", width=12, height=10, resize=Resize.LETTERBOX, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
IMAGE = {"image": TensorSpec("image", DType.FLOAT32, RECIPE.row_shape)}
X = {"x": TensorSpec("x", DType.FLOAT32, (4,))}
TWO = {"a": TensorSpec("a", DType.FLOAT32, (2,)), "b": TensorSpec("b", DType.INT64, (3,))}
DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def survey(path: Path, inputs: Mapping[str, TensorSpec] = X, recipe: Preprocess | None = None) -> Survey:
    return surveyed(SampleSource(path, inputs, recipe))


def rows_of(found: Survey) -> list[Tensors]:
    return list(found.everything().batches(1))


def numbers(count: int, start: int = 0) -> np.ndarray:
    return np.arange(start * 4, (start + count) * 4, dtype=np.float32).reshape(count, 4)


# --- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
async def test_an_image_calibrates_as_the_very_tensor_that_inference_makes_of_it(tmp_path, suffix):
    data = encoded(picture(1, 40, 30), suffix)
    model = networks.saved(networks.same(1, ("rows", *RECIPE.row_shape)), tmp_path)
    engine = tmp_path / "engine"
    runtime = registry.backend("onnxruntime")
    quiet = type("Quiet", (), {"step": lambda self, text: None, "warn": lambda self, text: None})()
    runtime.compile(model, BuildOptions(), {}, engine, quiet, calibration=None, cache=tmp_path, rows_max=32)
    spec = TensorSpec("x", DType.FLOAT32, (ANY, *RECIPE.row_shape))
    recipe = replace(RECIPE, input="x")
    record = engine_record(
        signature=Signature((spec,), (TensorSpec("y", *(spec.dtype, spec.shape)),)), preprocess=recipe
    )
    pool = EnginePool(
        lambda _: runtime.load(engine), budget_bytes=1 << 30, keep_alive_s=60, contexts=1, queue_rows_max=8
    )
    service = InferenceService(lambda name, version: record, pool)

    inferred = (await service.infer_images("net", [data])).outputs["y"]
    await service.close()
    (calibrated,) = rows_of(
        survey(archive(tmp_path / "a.zip", {f"deep/er/one{suffix}": data}), {"x": spec_of(spec)}, recipe)
    )

    np.testing.assert_array_equal(inferred, calibrated["x"])


def spec_of(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, spec.shape[1:])


def test_unreadable_files_are_left_out_and_named(tmp_path):
    good = encoded(picture(1))
    files = {"a/good.jpg": good, "b/cut.jpg": good[:100], "empty.png": b"", "text.jpg": b"hello", "notes.txt": b"x"}

    found = survey(archive(tmp_path / "a.zip", files), IMAGE, RECIPE)

    assert [row.entry for row in found.rows] == ["a/good.jpg"]
    assert {name for name, _ in found.unusable} == {"b/cut.jpg", "empty.png", "text.jpg"}
    assert found.skipped == 1 and not found.is_misfit


def test_an_image_of_900_megapixels_is_left_out_before_it_is_decoded(tmp_path):
    huge = bytearray(encoded(picture(1), ".bmp"))
    huge[18:26] = (30_000).to_bytes(4, "little") * 2

    found = survey(archive(tmp_path / "a.zip", {"huge.bmp": bytes(huge)}), IMAGE, RECIPE)

    assert not found.rows and len(found.unusable) == 1


def test_damage_within_the_archive_costs_only_the_file_it_hits(tmp_path):
    path = archive(tmp_path / "a.zip", {f"{seed}.png": encoded(picture(seed), ".png") for seed in range(3)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as whole:
        data[whole.infolist()[1].header_offset + 60] ^= 0xFF
    path.write_bytes(data)

    found = survey(path, IMAGE, RECIPE)

    assert [row.entry for row in found.rows] == ["0.png", "2.png"]


def test_copies_of_a_sample_count_once(tmp_path):
    found = survey(archive(tmp_path / "a.zip", {f"{n}.jpg": encoded(picture(n % 2)) for n in range(10)}), IMAGE, RECIPE)

    assert len(found.rows) == 2 and found.copies == 8


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([np.full((8, 8, 3), grey, np.uint8) for grey in range(0, 250, 5)], "within an image"),
        ([np.random.default_rng(n).integers(0, 3, (8, 8, 3), np.uint8) for n in range(50)], "within an image"),
        ([np.maximum(picture(1), n) for n in range(2)], "from image to image"),
    ],
    ids=["plain colours", "noise on black", "one picture"],
)
def test_images_that_teach_nothing_are_noticed(tmp_path, images, words):
    files = {f"{n}.png": encoded(image, ".png") for n, image in enumerate(images)}

    stretched = replace(RECIPE, resize=Resize.STRETCH)

    assert words in survey(archive(tmp_path / "a.zip", files), IMAGE, stretched).spread.problem()


def test_black_frames_are_noticed_within_the_border_of_a_letterbox(tmp_path):
    files = {f"{n}.png": encoded(np.full((8, 8, 3), n % 3, np.uint8), ".png") for n in range(50)}

    assert "from image to image" in survey(archive(tmp_path / "a.zip", files), IMAGE, RECIPE).spread.problem()


def test_real_images_are_varied_enough():
    image = {"image": TensorSpec("image", DType.FLOAT32, (1, 8, 8))}
    recipe = Preprocess("image", width=8, height=8, color="gray")

    found = survey(DIGITS / "calibration.zip", image, recipe)

    assert len(found.rows) == 300 and found.spread.problem() == ""


# --- tensors -------------------------------------------------------------------------------------------------------


def test_an_array_is_one_sample_or_samples_along_its_first_axis(tmp_path):
    files = {
        "one.npy": npy(numbers(1)[0]),
        "many.npy": npy(numbers(3, start=1)),
        "double.npy": npy(numbers(1, 9) / 2.0),
    }

    rows = np.concatenate([row["x"] for row in rows_of(survey(archive(tmp_path / "a.zip", files)))])

    np.testing.assert_array_equal(rows, np.concatenate([numbers(4), numbers(1, 9) / 2]))
    assert rows.dtype == np.float32


def test_a_file_of_several_inputs_has_an_array_for_each(tmp_path):
    a, b = np.ones((2, 2), np.float32) * [[1], [2]], np.arange(6).reshape(2, 3)
    files = {"pair.npz": npz(a=a, b=b), "single.npz": npz(a=a[0] * 9, b=b[1])}

    rows = rows_of(survey(archive(tmp_path / "a.zip", files), TWO))

    assert [row["a"].tolist() for row in rows] == [[[1, 1]], [[2, 2]], [[9, 9]]]
    assert [row["b"].tolist() for row in rows] == [[[0, 1, 2]], [[3, 4, 5]], [[3, 4, 5]]]
    assert rows[0]["b"].dtype == np.int64


@pytest.mark.parametrize(
    ("name", "data", "inputs", "reason"),
    [
        ("other.npy", npy(np.ones((3, 5), np.float32)), X, "one sample is float32 4"),
        ("text.npy", npy(np.array(["a", "b", "c", "d"])), X, "one sample is float32 4"),
        ("pickled.npy", npy(np.array([{}, {}, {}, {}])), X, "Python objects"),
        ("nan.npy", npy(np.full(4, np.nan, np.float32)), X, "NaN"),
        ("cut.npy", npy(np.ones(4, np.float32))[:-4], X, "header says"),
        ("bomb.npy", npy(np.ones(4, np.float32)).replace(b"(4,)", b"(4,("), X, "numpy's format"),
        ("garbage.npy", b"\x93NUMPY garbage", X, "numpy's format"),
        ("fortran.npy", npy(np.asfortranarray(numbers(3))), X, "Fortran"),
        ("single.npy", npy(np.ones(2, np.float32)), TWO, "use .npz"),
        ("names.npz", npz(a=np.ones(2, np.float32), c=np.ones(3)), TWO, "the model's inputs are a, b"),
        ("uneven.npz", npz(a=np.ones((2, 2), np.float32), b=np.ones((3, 3), np.int64)), TWO, "differ in samples"),
        ("image.png", encoded(picture(1), ".png"), X, "no recipe for images: x 4"),
    ],
)
def test_an_array_that_is_no_sample_says_why(tmp_path, name, data, inputs, reason):
    found = survey(archive(tmp_path / "a.zip", {name: data}), inputs)

    assert not found.rows
    assert reason in dict(found.unusable)[name]


# --- selection -----------------------------------------------------------------------------------------------------


def test_every_fifth_sample_is_held_back_and_never_calibrates(tmp_path):
    found = survey(archive(tmp_path / "a.zip", {"many.npy": npy(numbers(23))}))

    calibration, held_back = (
        [float(row["x"][0, 0]) / 4 for row in part.batches(1)] for part in (found.calibration(), found.held_back())
    )

    assert held_back == [4, 9, 14, 19]
    assert sorted(calibration + held_back) == list(range(23))


def test_batches_hold_every_sample_once_in_the_same_order_each_time(tmp_path):
    part = survey(archive(tmp_path / "a.zip", {"many.npy": npy(numbers(23))})).calibration()

    passes = [[batch["x"] for batch in part.batches(5)] for _ in range(2)]

    assert [len(batch) for batch in passes[0]] == [5, 5, 5, 4]
    assert part.count == 19
    np.testing.assert_array_equal(np.concatenate(passes[0]), np.concatenate(passes[1]))


def test_a_batch_is_filled_with_its_last_row():
    assert filled({"x": numbers(2)}, 4)["x"][:, 0].tolist() == [0, 4, 4, 4]


def test_the_key_follows_the_samples_and_not_the_archive(tmp_path):
    kept, zipped_again, other = (
        survey(archive(tmp_path / name, {file: npy(numbers(10, start))})).calibration().key
        for name, file, start in (("a.zip", "x.npy", 0), ("b.zip", "y.npy", 0), ("c.zip", "x.npy", 1))
    )

    assert kept == zipped_again != other


def test_more_samples_than_are_needed_are_thinned_evenly(tmp_path):
    found = survey(archive(tmp_path / "a.zip", {"many.npy": npy(numbers(2 * ROWS_MAX + 1))}))

    assert len(found.rows) <= ROWS_MAX
    assert found.rows[-1].index > 2 * ROWS_MAX - 5
    assert found.held_back().count <= 256 and found.everything().count <= 256


# --- labels --------------------------------------------------------------------------------------------------------

CLASSES = Classes(3, ("cat", "dog", "cow"))


def labels(tmp_path: Path, files: Mapping[str, bytes], classes: Classes = CLASSES) -> Mapping[str, int]:
    with zipfile.ZipFile(archive(tmp_path / "labelled.zip", files)) as written:
        return labels_in(written, classes)


def test_folders_named_like_classes_are_labels(tmp_path):
    files = {"set/dog/1.png": b"", "set/cow/2.npy": b"", "3.png": b""}

    assert labels(tmp_path, files) == {"set/dog/1.png": 1, "set/cow/2.npy": 2}


def test_folders_may_be_named_by_index(tmp_path):
    assert labels(tmp_path, {"0/a.png": b"", "2/b.png": b""}, Classes(3, ())) == {"0/a.png": 0, "2/b.png": 2}


def test_folders_that_mean_something_else_are_no_labels(tmp_path):
    assert labels(tmp_path, {"images/a.png": b"", "2024/b.png": b""}) == {}


def test_a_table_names_files_by_path_or_by_name(tmp_path):
    table = b"\xef\xbb\xbffile,label\nx/1.png,dog\n2.png,2\nmissing.png,cat\n"
    files = {"set/labels.csv": table, "set/x/1.png": b"", "elsewhere/2.png": b"", "cat/3.png": b""}

    assert labels(tmp_path, files) == {"set/x/1.png": 1, "elsewhere/2.png": 2}


@pytest.mark.parametrize(
    "files",
    [
        {"dog/1.png": b"", "horse/2.png": b""},
        {"labels.csv": b"1.png,horse\n", "1.png": b""},
        {"2/1.png": b"", "3/2.png": b""},
    ],
    ids=["folders", "table", "indices"],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, files):
    with pytest.raises(LabelsContradict, match=r"horse|'3'"):
        labels(tmp_path, files)


# --- memory --------------------------------------------------------------------------------------------------------

MEASURED = """
import sys; from pathlib import Path
from app.build.quantise_ranges import measured_ranges
from app.build.graph import described_source
from app.build.samples import SampleSource, surveyed
from app.build.shapes import run_shapes
from app.domain.builds import Ranging
from app.domain.preprocess import Preprocess
from app.domain.tensors import DType, TensorSpec
from tests import networks
model = networks.channel_means(224, 224)
inputs = {"image": TensorSpec("image", DType.FLOAT32, (3, 224, 224))}
survey = surveyed(SampleSource(Path(sys.argv[1]), inputs, Preprocess("image", 224, 224)))
scratch = Path(sys.argv[1]).with_suffix(".scratch")
shapes = run_shapes(described_source(model), {}, {"image": (1, 3, 224, 224)})
ranges = measured_ranges(model, ["image"], survey.calibration(), shapes, Ranging.MINMAX, scratch)
peak_kib = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(survey.calibration().count, ranges["image"][1] <= 1, int(peak_kib) // 1024)
"""


def test_five_hundred_images_calibrate_within_300_mib(tmp_path):
    path = pictures(tmp_path / "a.zip", 500, side=224)

    told = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True
    ).stdout

    count, in_range, peak_mib = told.split()
    assert (count, in_range) == ("400", "True")
    assert int(peak_mib) < 300
