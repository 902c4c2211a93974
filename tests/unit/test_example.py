from __future__ import annotations

import csv
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from app.dashboard.pages import FOLDER
from app.domain.decode import decoded
from app.domain.preprocess import Color, Preprocess, row_from_image

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
RECIPE = Preprocess(input="image", width=8, height=8, color=Color.GRAY)


@pytest.fixture(scope="module")
def network():
    session = onnxruntime.InferenceSession(DIGITS / "digits.onnx", providers=["CPUExecutionProvider"])
    return lambda rows: session.run(["logits"], {"image": rows})[0]


@pytest.fixture(scope="module")
def truth():
    with (DIGITS / "test" / "labels.csv").open(newline="") as file:
        return {row["file"]: int(row["label"]) for row in csv.DictReader(file)}


def test_the_network_reads_at_least_97_percent_of_the_held_out_digits(network):
    held_out = np.load(DIGITS / "heldout.npz")

    logits = network(held_out["images"][:, None].astype(np.float32) / 255)

    assert logits.shape == (599, 10)
    assert np.mean(logits.argmax(axis=1) == held_out["labels"]) >= 0.97


def test_the_test_images_are_read_right_through_the_services_own_recipe(network, truth):
    rows = np.stack([row_from_image((DIGITS / "test" / name).read_bytes(), RECIPE) for name in truth])

    assert np.mean(network(rows).argmax(axis=1) == list(truth.values())) >= 0.9


def test_the_test_images_are_those_that_the_label_file_lists_and_belong_to_the_held_out_third(truth):
    held_out = np.load(DIGITS / "heldout.npz")

    assert {path.name for path in (DIGITS / "test").glob("*.png")} == set(truth)
    for index, (name, label) in enumerate(truth.items()):
        assert name.endswith(f"_label{label}.png")
        assert held_out["labels"][index] == label
        assert np.array_equal(decoded((DIGITS / "test" / name).read_bytes(), is_gray=True), held_out["images"][index])


def test_the_calibration_archive_holds_images_of_every_class_and_none_of_the_held_out_ones():
    held_out = {image.tobytes() for image in np.load(DIGITS / "heldout.npz")["images"]}

    with zipfile.ZipFile(DIGITS / "calibration.zip") as archive:
        images = {name: decoded(archive.read(name), is_gray=True) for name in archive.namelist()}

    assert len(images) == 300
    assert {name.partition("/")[0] for name in images} == {str(label) for label in range(10)}
    assert {image.shape for image in images.values()} == {(8, 8)}
    assert not held_out & {image.tobytes() for image in images.values()}


def test_the_labels_are_the_ten_digits():
    assert (DIGITS / "labels.txt").read_text().split() == [str(label) for label in range(10)]


EXAMPLE = ["digits.onnx", "digits.torchscript.pt", "digits.pt2", "calibration.zip", "heldout.npz"]


@pytest.mark.parametrize("name", EXAMPLE)
def test_the_example_is_small_enough_for_the_repository(name):
    assert 1_000 < (DIGITS / name).stat().st_size < 100_000


def test_the_dashboard_brings_the_same_example():
    bundled = FOLDER / "example"
    about = json.loads((bundled / "example.json").read_text())
    originals = {about["model"]: DIGITS, about["calibration"]: DIGITS, about["labels"]: DIGITS}
    originals |= dict.fromkeys(about["images"], DIGITS / "test")

    assert {path.name for path in bundled.iterdir()} == {*originals, "example.json"}
    for name, folder in originals.items():
        assert (bundled / name).read_bytes() == (folder / name).read_bytes()
    assert about["model_id"] == f"sha256:{hashlib.sha256((bundled / about['model']).read_bytes()).hexdigest()}"
