"""An ONNX network in an archive with the files of its weights: out of the archive, under names of our own.

The archive's names are never used as paths. The network says which files hold its weights, relative to itself; each is
looked up in the archive, and what is not asked for stays inside. Where all fits into one ONNX file, one is made.
"""

from __future__ import annotations

import gzip
import posixpath
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from app.backends.onnxruntime_models import split_tensors
from app.build.graph import refuse_damaged_names
from app.build.workdir import WHOLE_BYTES_MAX
from app.domain.errors import ExternalDataMissing, ModelInvalid
from app.storage.packages import ENTRIES_MAX, usable
from app.storage.tars import TarDamaged, members

_SMALL_VALUES = 128  # in a tensor that may be a shape
_GRAPH_BYTES_MAX = 2**31 - 1
_RATIO_MAX = 200  # unpacked / packed: weights shrink far less
_RATIO_FLOOR_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_NAMED = 5  # missing files that are named
_AGAIN = "Make the archive anew: zip -0 model.zip model.onnx and every file that its weights are in."


@dataclass(frozen=True)
class _Entry:
    size_bytes: int
    open: Callable[[], AbstractContextManager[BinaryIO]]


_Entries = dict[str, _Entry]


def unpacked(
    source: Path, target: Path, *, whole_bytes_max: int = WHOLE_BYTES_MAX, unpacked_bytes_max: int = 64 << 30
) -> None:
    """Take the network out of a zip or tar archive.

    Args:
        target: the network's file; `weights-0.bin`, … come beside it when all together pass a limit.
        whole_bytes_max: that limit: of a network with its weights in one file.

    Raises:
        ModelInvalid: the archive is damaged, passes a limit, or its network points outside of it.
        ExternalDataMissing: names the files that the network asks for and the archive lacks.
    """
    folder = target.parent
    with _entries(source) as entries:
        name = _only_network(entries)
        packed_bytes = source.stat().st_size
        limit = min(unpacked_bytes_max, max(_RATIO_FLOOR_BYTES, _RATIO_MAX * packed_bytes))
        left = limit - _take(entries[name], target, min(limit, _GRAPH_BYTES_MAX))
        model = _parsed(target)
        files = _weights(model, name, entries)
        for entry, path in zip(files.values(), _paths(folder, len(files)), strict=True):
            left -= _take(entry, path, left)
    _point_to(model, {old: path.name for old, path in zip(files, _paths(folder, len(files)), strict=True)})
    if files:
        _save(model, target, sum(entry.size_bytes for entry in files.values()), whole_bytes_max)


def network_in(source: Path) -> onnx.ModelProto:
    """The network in a zip or tar archive, without the weights that are in other files; nothing is written.

    Raises:
        ModelInvalid, ExternalDataMissing: as for `unpacked`.
    """
    with _entries(source) as entries:
        name = _only_network(entries)
        with entries[name].open() as file:
            content = file.read(min(_GRAPH_BYTES_MAX, max(_RATIO_FLOOR_BYTES, _RATIO_MAX * source.stat().st_size)))
        try:
            model = onnx.load_model_from_string(content)
        except DecodeError as error:
            raise ModelInvalid("The .onnx file in the archive is damaged.", hint=_AGAIN) from error
        refuse_damaged_names(model)
        _weights(model, name, entries)
    return model


@contextmanager
def _entries(source: Path) -> Iterator[_Entries]:
    try:
        if zipfile.is_zipfile(source) and not _is_gzip(source):
            with zipfile.ZipFile(source) as archive:
                yield _zip_entries(archive)
        else:
            yield _tar_entries(source)
    except OSError as error:
        if error.errno is not None and not isinstance(error, gzip.BadGzipFile):  # of the disk, not of the archive
            raise
        raise _unreadable(error) from error
    except (zipfile.BadZipFile, zlib.error, TarDamaged, EOFError, RuntimeError) as error:  # encrypted, or damaged
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> ModelInvalid:
    return ModelInvalid(f"The archive cannot be read: {str(error)[:200]}.", hint=_AGAIN)


def _is_gzip(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _zip_entries(archive: zipfile.ZipFile) -> _Entries:
    found: _Entries = {}
    for info in archive.infolist():
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG) or info.is_dir():
            continue  # a folder, or a link: a link's content is a path, and no weights
        _add(found, info.filename, _Entry(info.file_size, partial(_zip_part, archive, info)))
    return found


def _zip_part(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> AbstractContextManager[BinaryIO]:
    return cast("AbstractContextManager[BinaryIO]", archive.open(info))


def _tar_entries(source: Path) -> _Entries:
    found: _Entries = {}
    with _tar_file(source) as file:
        for member in members(file):
            if member.is_file:
                start = file.tell()
                _add(found, member.name, _Entry(member.size_bytes, _opener(source, start, member.size_bytes)))
    return found


def _opener(source: Path, start: int, size_bytes: int) -> Callable[[], AbstractContextManager[BinaryIO]]:
    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        with _tar_file(source) as file:
            file.seek(start)
            yield cast("BinaryIO", _Part(file, size_bytes))

    return opened


class _Part:
    """The next bytes of a file, as a file."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._left = size_bytes

    def read(self, size_bytes: int) -> bytes:
        content = self._file.read(min(size_bytes, self._left))
        self._left -= len(content)
        return content


def _tar_file(source: Path) -> AbstractContextManager[BinaryIO]:
    if _is_gzip(source):
        return cast("AbstractContextManager[BinaryIO]", gzip.open(source))
    return source.open("rb")


def _add(entries: _Entries, name: str, entry: _Entry) -> None:
    path = posixpath.normpath(name)
    if len(entries) >= ENTRIES_MAX:
        raise ModelInvalid(f"The archive has more than {ENTRIES_MAX:,} files.", hint=_AGAIN)
    if path in entries:
        raise ModelInvalid(f"The archive has two files of the name {path[:80]!r}.", hint=_AGAIN)
    entries[path] = entry


def _only_network(entries: _Entries) -> str:
    networks = [name for name in usable(list(entries)) if name.lower().endswith(".onnx")]
    if len(networks) != 1:
        raise ModelInvalid(
            f"The archive holds {len(networks)} files that end in .onnx; one is wanted.",
            hint="Put one network into it, with the files of its weights.",
        )
    return networks[0]


def _take(entry: _Entry, target: Path, limit_bytes: int) -> int:
    """Unpack one file, whatever size it says it has.

    Returns:
        Its size in bytes.
    """
    taken = 0
    with entry.open() as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            taken += len(chunk)
            if taken > limit_bytes:
                raise ModelInvalid(
                    "The archive unpacks to more than it may.",
                    hint=f"Weights shrink little: at most {_RATIO_MAX} times its size is unpacked.",
                )
            file.write(chunk)
    if taken != entry.size_bytes:
        raise ModelInvalid(
            f"A file in the archive has {taken:,} bytes and announces {entry.size_bytes:,}.", hint=_AGAIN
        )
    return taken


def _parsed(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load_model(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelInvalid("The .onnx file in the archive is damaged.", hint=_AGAIN) from error


def _weights(model: onnx.ModelProto, network: str, entries: _Entries) -> _Entries:
    """The entries that hold weights, by the location that the network gives; each once."""
    found: _Entries = {}
    missing = []
    for tensor in split_tensors(model):
        location = _location(tensor)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(network), location))
        if location.startswith("/") or "\\" in location or "\0" in location or path.startswith("../"):
            raise ModelInvalid(
                f"The network says that weights are in {location[:80]!r}, outside of the archive.",
                hint="Save it again: onnx.save_model(model, 'model.onnx', save_as_external_data=True,"
                " location='weights.bin').",
            )
        if path in entries:
            found[location] = entries[path]
        elif location not in missing:
            missing.append(location)
    if missing:
        named = ", ".join(repr(name[:80]) for name in missing[:_NAMED])
        raise ExternalDataMissing(
            f"{len(missing)} files of weights that the network asks for are not in the archive: {named}"
            f"{', …' if len(missing) > _NAMED else ''}.",
            hint="Put them into the archive, where they lie relative to the .onnx file.",
        )
    return found


def _point_to(model: onnx.ModelProto, names: dict[str, str]) -> None:
    for tensor in split_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names[entry.value]


def _save(model: onnx.ModelProto, target: Path, weights_bytes: int, whole_bytes_max: int) -> None:
    """One file where that is possible; else only small constants, as shapes are, come into the graph."""
    is_whole = model.ByteSize() + weights_bytes <= whole_bytes_max
    try:
        for tensor in split_tensors(model):
            if is_whole or prod(tensor.dims) <= _SMALL_VALUES:
                onnx.external_data_helper.load_external_data_for_tensor(tensor, str(target.parent))
                tensor.data_location = TensorProto.DEFAULT
                del tensor.external_data[:]
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise ModelInvalid(f"The files of weights do not fit the network: {_line(error)}", hint=_AGAIN) from error
    if is_whole:
        for path in target.parent.glob("weights-*.bin"):
            path.unlink()
    onnx.save_model(model, str(target))


def _location(tensor: TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _paths(folder: Path, count: int) -> list[Path]:
    return [folder / f"weights-{number}.bin" for number in range(count)]


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
