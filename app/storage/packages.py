"""Archives that are sent as networks: TorchScript, .pt2 and ONNX with its weights; others refused by name.

Only the list of contents is read, within limits, and the pickle that tells weights from a pickled network.
"""

from __future__ import annotations

import gzip
import io
import posixpath
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from app.domain.builds import ModelFormat
from app.domain.errors import ArchiveRejected, ModelRejected
from app.storage.archives import IMAGES, ArchiveLimits, check_directory
from app.storage.strangers import SAVE, pickle_rejected, rejected
from app.storage.tars import BLOCK_BYTES, TarDamaged, is_header, members

ENTRIES_MAX = 20_000  # of an archive sent as a network
_PICKLE_BYTES_MAX = 16 << 20
_DAMAGED = "Copy or save it again, and compare the file sizes."

_AOT = (
    "a program compiled by AOTInductor for one machine",
    "Send the program itself: torch.export.save(torch.export.export(model, (example,)), 'model.pt2')",
)
_PACKAGE = (
    "a torch.package archive: opening it runs the Python in it",
    f"Take the network out and save it: model = torch.package.PackageImporter('model.pt').load_pickle(…); {SAVE}",
)
_OLD_PROGRAM = (
    "a .pt2 file of PyTorch before 2.8",
    "Save it again with a newer one: torch.export.save(torch.export.load('old.pt2'), 'model.pt2')",
)
_KERAS = (
    "a Keras file",
    "Export it to ONNX where it was trained:"
    " keras.saving.load_model('model.keras').export('model.onnx', format='onnx')",
)
_SAVED_MODEL = (
    "a TensorFlow SavedModel",
    "Convert it to ONNX: python -m tf2onnx.convert --saved-model FOLDER --output model.onnx",
)


def zip_format(path: Path) -> ModelFormat:
    """The format of a network in a zip archive.

    Raises:
        ModelRejected: it is none; says what it is instead.
    """
    try:
        check_directory(path, ArchiveLimits(ENTRIES_MAX, 0))
        with zipfile.ZipFile(path) as archive:
            return _format_of(archive)
    except ArchiveRejected as error:
        raise ModelRejected(
            f"The model file is a zip archive that cannot be read: {error.detail[:1].lower()}{error.detail[1:]}",
            hint=_DAMAGED,
        ) from error
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, zlib.error, EOFError) as error:
        raise ModelRejected("The model file is a zip archive that is damaged.", hint=_DAMAGED) from error


def is_tar(head: bytes) -> bool:
    return is_header(head[:BLOCK_BYTES])


def tar_format(path: Path) -> ModelFormat:
    """The format of a network in a tar archive: ONNX, or none.

    Raises:
        ModelRejected
    """
    names = []
    try:
        with path.open("rb") as file:
            for member in members(file):
                names.append(member.name)
                if len(names) > ENTRIES_MAX:
                    raise TarDamaged("too many entries")
    except TarDamaged as error:
        raise ModelRejected(f"The model file is a tar archive that is damaged: {error}.", hint=_DAMAGED) from error
    return _onnx_archive(names)


def gzip_format(path: Path) -> ModelFormat:
    """As `tar_format`, from its first entry only: listing all would unpack all of it.

    Raises:
        ModelRejected
    """
    try:
        with gzip.open(path) as file:
            head = file.read(BLOCK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise ModelRejected("The model file is a gzip file that is damaged.", hint=_DAMAGED) from error
    if not is_header(head):
        raise rejected("a gzip file", "Send the file itself; gunzip unpacks it.")
    return ModelFormat.ONNX_ARCHIVE


def usable(names: list[str]) -> list[str]:
    """Files, without folders, hidden files and what macOS adds."""
    return [
        name
        for name in names
        if not name.endswith("/") and not any(part == "__MACOSX" or part.startswith(".") for part in name.split("/"))
    ]


def _format_of(archive: zipfile.ZipFile) -> ModelFormat:
    whole = archive.namelist()
    root = f"{whole[0].split('/')[0]}/" if whole else ""
    names = {name.removeprefix(root) for name in whole} if all(name.startswith(root) for name in whole) else set(whole)
    for is_it, format in _READ:
        if is_it(names):
            return format
    for is_it, (what, hint) in _REFUSED:
        if is_it(names):
            raise rejected(what, hint)
    if "data.pkl" in names:
        raise pickle_rejected(_pickle(archive, root))
    return _onnx_archive(whole)


_Test = Callable[[set[str]], bool]


def _under(*prefixes: str) -> _Test:
    return lambda names: any(name.startswith(prefixes) for name in names)


def _all_of(*wanted: str) -> _Test:
    return lambda names: names.issuperset(wanted)


def _is_program(names: set[str]) -> bool:
    models = any(name.startswith("models/") and name.endswith(".json") for name in names)
    return models and "archive_format" in names and not _under("data/aotinductor/")(names)


_READ: tuple[tuple[_Test, ModelFormat], ...] = (
    (lambda names: "constants.pkl" in names and _under("code/")(names), ModelFormat.TORCHSCRIPT),
    (_is_program, ModelFormat.PT2),
)
_REFUSED: tuple[tuple[_Test, tuple[str, str]], ...] = (
    (_under("data/aotinductor/"), _AOT),
    (_all_of(".data/python_version"), _PACKAGE),
    (_all_of("serialized_exported_program.json"), _OLD_PROGRAM),
    (_all_of("config.json", "model.weights.h5"), _KERAS),
    (lambda names: any(posixpath.basename(name) == "saved_model.pb" for name in names), _SAVED_MODEL),
)


def _pickle(archive: zipfile.ZipFile, root: str) -> io.BytesIO:
    """The start of the pickle in the archive."""
    name = f"{root}data.pkl" if f"{root}data.pkl" in archive.namelist() else "data.pkl"
    with archive.open(name) as file:
        return io.BytesIO(file.read(_PICKLE_BYTES_MAX))


def _onnx_archive(names: list[str]) -> ModelFormat:
    files = usable(names)
    networks = [name for name in files if name.lower().endswith(".onnx")]
    if len(networks) == 1:
        return ModelFormat.ONNX_ARCHIVE
    if networks:
        raise rejected(
            f"an archive of {len(networks)} ONNX files", "Put one .onnx file into it, with the files of its weights."
        )
    if files and all(posixpath.splitext(name)[1].lower() in IMAGES for name in files):
        raise rejected(
            "an archive of images", "Samples are sent as -F calibration=@images.zip, the network as -F model=@…."
        )
    raise rejected(
        "an archive without a network",
        "Send the network's file itself; an archive is for an .onnx file whose weights are in other files.",
    )
