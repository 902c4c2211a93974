"""ONNX with weights in other files, in an archive: unpacked safely, or refused by name."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from app.build import unpack
from app.domain.errors import ExternalDataMissing, ModelInvalid
from tests.networks import constant, network, value

WEIGHTS = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)


def unpacked(archive: Path, folder: Path, **limits: int) -> Path:
    unpack.unpacked(archive, folder / "model.onnx", **limits)
    return folder / "model.onnx"


def saved_apart(folder: Path, location: str = "weights.bin") -> tuple[bytes, bytes]:
    """An ONNX file whose weights are elsewhere, and the weights; y = x · WEIGHTS."""
    folder.mkdir(exist_ok=True)
    model = network(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", ["rows", 30])],
        [value("y", ["rows", 20])],
        [constant("w", WEIGHTS)],
    )
    onnx.save_model(model, str(folder / "m.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0)
    apart = onnx.load_model(str(folder / "m.onnx"), load_external_data=False)
    for entry in apart.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    return apart.SerializeToString(), (folder / "weights.bin").read_bytes()


def zipped(path: Path, method: int = zipfile.ZIP_DEFLATED, **contents: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, mode: str, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def assert_whole(path: Path) -> None:
    """It is one file, and it multiplies by WEIGHTS."""
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]
    x = np.ones((3, 30), np.float32)
    (y,) = ort.InferenceSession(str(path)).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ WEIGHTS, rtol=1e-5)


def test_a_network_and_its_weights_become_one_file(folder, tmp_path):
    model, weights = saved_apart(tmp_path / "made")
    contents = {"net/m.onnx": model, "net/weights.bin": weights, "net/README": b"about"}

    for archive in (
        zipped(tmp_path / "a.zip", **contents),
        tarred(tmp_path / "a.tar", "w", contents),
        tarred(tmp_path / "a.tgz", "w:gz", dict(reversed(contents.items()))),
    ):
        assert_whole(unpacked(archive, folder))


def test_weights_in_a_folder_beside_the_network_are_found(folder, tmp_path):
    model, weights = saved_apart(tmp_path / "made", location="./data/../data/w 1.bin")

    assert_whole(unpacked(zipped(tmp_path / "a.zip", **{"n/m.onnx": model, "n/data/w 1.bin": weights}), folder))


def test_an_onnx_file_that_is_whole_already_may_be_zipped_too(folder, tmp_path):
    saved_apart(tmp_path / "made")
    onnx.save_model(onnx.load_model(str(tmp_path / "made" / "m.onnx")), str(tmp_path / "whole.onnx"))

    assert_whole(unpacked(zipped(tmp_path / "a.zip", **{"m.onnx": (tmp_path / "whole.onnx").read_bytes()}), folder))


def test_missing_files_of_weights_are_named(folder, tmp_path):
    model, weights = saved_apart(tmp_path / "made", location="other.bin")

    with pytest.raises(ExternalDataMissing, match=r"'other\.bin'"):
        unpacked(zipped(tmp_path / "a.zip", **{"m.onnx": model, "weights.bin": weights}), folder)


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "a/../../weights.bin", "..\\weights.bin"])
def test_weights_outside_of_the_archive_are_refused(location, folder, tmp_path):
    model, weights = saved_apart(tmp_path / "made", location=location)
    archive = zipped(tmp_path / "a.zip", **{"m.onnx": model, "weights.bin": weights, "../weights.bin": weights})

    with pytest.raises(ModelInvalid, match="outside of the archive"):
        unpacked(archive, folder)

    assert not list(tmp_path.glob("weights*"))


def test_a_link_is_no_file_of_weights(folder, tmp_path):
    model, weights = saved_apart(tmp_path / "made")
    victim = tmp_path / "victim"
    victim.write_bytes(weights)
    link = zipfile.ZipInfo("weights.bin")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("m.onnx", model)
        archive.writestr(link, str(victim))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("m.onnx")
        info.size = len(model)
        archive.addfile(info, io.BytesIO(model))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("weights.bin")
            info.type, info.linkname = kind, str(victim)
            archive.addfile(info)

    for name in ("a.zip", "a.tar"):
        with pytest.raises(ExternalDataMissing):
            unpacked(tmp_path / name, folder)


def test_a_bomb_is_stopped_at_the_limit(folder, tmp_path):
    model, _ = saved_apart(tmp_path / "made")
    archive = zipped(tmp_path / "a.zip", **{"m.onnx": model, "weights.bin": bytes(200 << 20)})

    with pytest.raises(ModelInvalid, match="more than it may"):
        unpacked(archive, folder)

    assert sum(path.stat().st_size for path in folder.iterdir()) < 80 << 20


def test_weights_that_are_too_short_are_refused(folder, tmp_path):
    model, weights = saved_apart(tmp_path / "made")

    with pytest.raises(ModelInvalid, match="do not fit"):
        unpacked(zipped(tmp_path / "a.zip", **{"m.onnx": model, "weights.bin": weights[:100]}), folder)


@pytest.mark.parametrize("names", [["a.onnx", "b.onnx"], ["a.bin"], ["a.onnx", "./a.onnx"]])
def test_an_archive_without_exactly_one_network_is_refused(names, folder, tmp_path):
    with pytest.raises(ModelInvalid):
        unpacked(tarred(tmp_path / "a.tar", "w", dict.fromkeys(names, b"x")), folder)


@pytest.mark.parametrize("damage", [lambda data: data[:600], lambda data: data[:200] + b"\xff" * 300 + data[500:]])
def test_a_damaged_archive_is_refused(damage, folder, tmp_path):
    model, weights = saved_apart(tmp_path / "made")
    contents = {"m.onnx": model, "weights.bin": weights}

    for archive in (
        zipped(tmp_path / "a.zip", **contents),
        tarred(tmp_path / "a.tar", "w", contents),
        tarred(tmp_path / "a.tgz", "w:gz", contents),
    ):
        archive.write_bytes(damage(archive.read_bytes()))
        with pytest.raises(ModelInvalid):
            unpacked(archive, folder)
