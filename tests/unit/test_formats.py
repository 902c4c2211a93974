"""The kind of an upload is told from its bytes, and each wrong kind is answered with what makes the right one."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest

from app.domain.builds import ModelFormat
from app.domain.errors import EmptyUpload, ModelRejected
from app.storage.formats import model_format
from tests import networks

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


def zipped(*names: str, **contents: bytes) -> bytes:
    """A zip of empty files of these names, and of files with content ("/" written as "__")."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
        for name, content in contents.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return file.getvalue()


def tarred(*names: str, mode: str = "w", format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=format) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(bytes(700)))
    return file.getvalue()


def told(content: bytes, folder: Path) -> ModelFormat:
    path = folder / "upload"
    path.write_bytes(content)
    return model_format(path)


def refusal(content: bytes, folder: Path) -> str:
    with pytest.raises(ModelRejected) as failure:
        told(content, folder)
    return f"{failure.value.detail} {failure.value.hint}"


class Rebuilt:
    """Pickles as torch pickles a weight: by a function of that name, which exists only in torch."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def pickled(self) -> bytes:
        """`OrderedDict(weight=<module.name>())`, protocol 2."""
        call = f"c{self.module}\n{self.name}\n".encode() + b")R"
        return b"\x80\x02ccollections\nOrderedDict\n)R(X\x06\x00\x00\x00weight" + call + b"u."


STATE_DICT = Rebuilt("torch._utils", "_rebuild_tensor_v2").pickled()
NETWORK = Rebuilt("mypackage.models", "Net").pickled()
# What torch.save wrote before 1.6: a number, a version and facts of the system, each a pickle, then the object.
LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + b"\x80\x02M\xe9\x03." + b"\x80\x02}."


@pytest.mark.parametrize(
    "name, format",
    [
        ("digits.onnx", ModelFormat.ONNX),
        ("digits.torchscript.pt", ModelFormat.TORCHSCRIPT),
        ("digits.pt2", ModelFormat.PT2),
    ],
)
def test_the_examples_networks_are_told_apart(name, format):
    assert model_format(EXAMPLE / name) is format


@pytest.mark.parametrize("names", [["model.onnx"], ["net/model.onnx", "net/weights.bin", "__MACOSX/net/._model.onnx"]])
def test_one_onnx_file_with_others_in_a_zip_or_tar_is_an_archive_of_onnx(names, tmp_path):
    assert told(zipped(*names), tmp_path) is ModelFormat.ONNX_ARCHIVE
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert told(tarred(*names, format=format), tmp_path) is ModelFormat.ONNX_ARCHIVE
    assert told(tarred(*names, mode="w:gz"), tmp_path) is ModelFormat.ONNX_ARCHIVE


def test_names_longer_than_a_tar_header_are_read(tmp_path):
    name = f"{'folder/' * 30}model.onnx"

    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert told(tarred(name, "other", format=format), tmp_path) is ModelFormat.ONNX_ARCHIVE


def test_an_empty_file_is_refused_as_empty(tmp_path):
    with pytest.raises(EmptyUpload):
        told(b"", tmp_path)


@pytest.mark.parametrize(
    "content",
    [zipped(net__data_dot_pkl=STATE_DICT, net__version=b"3"), STATE_DICT, LEGACY + STATE_DICT],
    ids=["zip", "plain pickle", "before 1.6"],
)
def test_weights_without_a_network_are_answered_with_the_lines_that_load_and_save_them(content, tmp_path):
    words = refusal(content, tmp_path)

    assert "state_dict" in words
    assert "model.load_state_dict(torch.load(" in words and "torch.jit.save(torch.jit.script(" in words


@pytest.mark.parametrize(
    "content",
    [zipped(net__data_dot_pkl=NETWORK, net__version=b"3"), NETWORK, LEGACY + NETWORK],
    ids=["zip", "plain pickle", "before 1.6"],
)
def test_a_pickled_network_is_answered_with_its_class_and_the_line_that_saves_it_without(content, tmp_path):
    words = refusal(content, tmp_path)

    assert "mypackage.models.Net" in words
    assert "torch.jit.save(torch.jit.script(model.eval()), 'model.pt')" in words


def test_a_pickle_is_never_run(tmp_path):
    marker = tmp_path / "marker"
    evil = b"\x80\x02cos\nsystem\nX" + len(str(marker) + "touch ").to_bytes(4, "little")
    evil += f"touch {marker}".encode() + b"\x85R."

    assert "posix.system" in refusal(evil, tmp_path) or "os.system" in refusal(evil, tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content, what, remedy",
    [
        (zipped("m/.data/python_version", "m/model/model.pkl"), "torch.package", "PackageImporter"),
        (zipped("m/data/aotinductor/model/x.so", "m/archive_format"), "AOTInductor", "torch.export.save("),
        (zipped("serialized_exported_program.json", "version"), "before 2.8", "torch.export.load("),
        (zipped("metadata.json", "config.json", "model.weights.h5"), "Keras", ".export('model.onnx'"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "Keras", ".export('model.onnx'"),
        (zipped("net/saved_model.pb", "net/variables/variables.index"), "SavedModel", "--saved-model"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(100), "TFLite", "--tflite"),
        (
            (20).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}' + bytes(9),
            "safetensors",
            "load_file('model.safetensors')",
        ),
        (b"ftrt" + bytes(100), "TensorRT engine", "built from"),
        (b"ptrt" + bytes(100), "TensorRT engine", "POST /engines of a device with TensorRT"),
        (zipped("a/1.png", "a/2.jpg"), "archive of images", "calibration=@"),
        (zipped("a.onnx", "b.onnx"), "2 ONNX files", "one .onnx"),
        (tarred("weights.bin"), "without a network", ".onnx"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "JPEG", "/infer/"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(100), "WebP", "/infer/"),
        (b"a.onnx", "a file's name", "put @ before"),
        (b"models/my net v2.torchscript.pt\n", "a file's name", "put @ before"),
        (b"<!DOCTYPE html><html>Not found</html>", "text", "error page"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip", "again"),
    ],
)
def test_a_foreign_file_is_named_and_answered_with_what_makes_the_right_one(content, what, remedy, tmp_path):
    words = refusal(content, tmp_path)

    assert what in words and remedy in words


def test_a_zip_that_is_cut_off_is_refused_as_damaged(tmp_path):
    whole = (EXAMPLE / "digits.torchscript.pt").read_bytes()

    words = refusal(whole[:-500], tmp_path)

    assert "zip archive that cannot be read: the archive is cut off" in words and "not a zip" not in words


def test_a_tar_that_is_cut_off_is_refused_as_damaged(tmp_path):
    assert "cut off" in refusal(tarred("model.onnx", "weights.bin")[:1500], tmp_path)


def test_a_zip_of_a_hundred_thousand_entries_is_refused_before_it_is_listed(tmp_path):
    entry = b"PK\x01\x02" + bytes(24) + (1).to_bytes(2, "little") + bytes(16) + b"n"
    directory = entry * 100_000
    end = b"PK\x05\x06" + bytes(8) + len(directory).to_bytes(4, "little") + (4).to_bytes(4, "little") + bytes(2)

    assert "more than 20,000" in refusal(b"PK\x03\x04" + directory + end, tmp_path)


def test_a_torchscript_archive_with_a_hidden_native_program_is_no_program(tmp_path):
    content = zipped("m/archive_format", "m/models/model.json", "m/data/aotinductor/model/x.so")

    assert "AOTInductor" in refusal(content, tmp_path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_any_other_pickle_is_refused(protocol, tmp_path):
    assert "pickle" in refusal(pickle.dumps(OrderedDict(weights=[1, 2, 3]), protocol), tmp_path)


def test_an_onnx_file_that_is_cut_off_is_refused(tmp_path):
    whole = networks.convolved().SerializeToString()

    assert "cut off" in refusal(whole[: len(whole) // 2], tmp_path)
