"""One file of a calibration archive → the rows in it: images by the engine's recipe, arrays as they are."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from app.domain.errors import ArchiveRejected, ImageRejected
from app.domain.preprocess import Preprocess, row_from_image
from app.domain.tensors import Shape, Tensor, Tensors, TensorSpec, shape_text
from app.storage.archives import IMAGES, read_entry

ARRAYS = frozenset({".npy", ".npz"})
TABLE = ".csv"  # labels: no sample, and no stray file either

_IMAGE_BYTES_MAX = 64 << 20  # encoded
_NPZ_BYTES_MAX = 256 << 20  # packed, and each array unpacked: these are held in memory; .npy files are streamed
_NPZ_ENTRIES_MAX = 1000
_ENTRY = b"PK\x01\x02"  # begins the description of each member of a zip

MakeRow = Callable[[], Tensors]  # may run in any thread; raises Unusable
Rows = Mapping[str, TensorSpec]  # the model's inputs by name; their shapes are those of one row, without batch axis


class Unusable(Exception):
    """Why a file, or a row of it, is no sample; for a person."""

    def __init__(self, reason: str, *, is_misfit: bool = False) -> None:
        super().__init__(reason)
        self.is_misfit = is_misfit  # readable, but of another shape, type or name than the model's inputs


def pending_rows(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, inputs: Rows, recipe: Preprocess | None
) -> Iterator[MakeRow]:
    """What makes each row of a file, in their order. Reading is done here, decoding by the caller's threads.

    Raises:
        Unusable: also in the middle, where a file turns out to be damaged.
    """
    suffix = Path(info.filename).suffix.lower()
    try:
        if suffix in IMAGES:
            yield _image(archive, info, inputs, recipe)
        elif suffix == ".npy":
            yield from _npy(archive, info, inputs)
        elif suffix == ".npz":
            yield from _npz(archive, info, inputs)
        else:
            raise Unusable(f"files of kind {suffix[:10] or 'none'} are not read")
    except ArchiveRejected as error:
        raise Unusable(error.detail) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise Unusable("its part of the archive is damaged") from error


def _image(archive: zipfile.ZipFile, info: zipfile.ZipInfo, inputs: Rows, recipe: Preprocess | None) -> MakeRow:
    if recipe is None:
        wanted = ", ".join(f"{spec.name} {shape_text(spec.shape)}" for spec in inputs.values())
        raise Unusable(
            f"it is an image, and the engine has no recipe for images: {wanted} for one sample", is_misfit=True
        )
    return partial(_decoded, read_entry(archive, info, _IMAGE_BYTES_MAX), recipe)


def _decoded(data: bytes, recipe: Preprocess) -> Tensors:
    try:
        return {recipe.input: row_from_image(data, recipe)}
    except ImageRejected as error:
        raise Unusable(error.detail) from error


def _npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, inputs: Rows) -> Iterator[MakeRow]:
    if len(inputs) != 1:
        raise Unusable(f"an .npy holds one array, and the model has {len(inputs)} inputs: use .npz", is_misfit=True)
    (spec,) = inputs.values()
    with archive.open(info) as stream:
        for row in _rows(stream, info.file_size, spec):
            yield partial(_checked, {spec.name: row}, inputs)


def _npz(archive: zipfile.ZipFile, info: zipfile.ZipInfo, inputs: Rows) -> Iterator[MakeRow]:
    data = read_entry(archive, info, _NPZ_BYTES_MAX)
    if data.count(_ENTRY) > _NPZ_ENTRIES_MAX:
        raise Unusable(f"it holds more than {_NPZ_ENTRIES_MAX} arrays")
    with zipfile.ZipFile(io.BytesIO(data)) as arrays:
        names = {Path(name).stem if name.endswith(".npy") else name: name for name in arrays.namelist()}
        if set(names) != set(inputs):
            found, wanted = (", ".join(sorted(keys)) or "none" for keys in (names, inputs))
            raise Unusable(f"its arrays are {found[:200]}; the model's inputs are {wanted}", is_misfit=True)
        rows = [list(_member(arrays, names[name], spec)) for name, spec in inputs.items()]
    if len({len(of_input) for of_input in rows}) > 1:
        raise Unusable(f"its arrays differ in samples: {', '.join(str(len(part)) for part in rows)}", is_misfit=True)
    for parts in zip(*rows, strict=True):
        yield partial(_checked, dict(zip(inputs, parts, strict=True)), inputs)


def _member(arrays: zipfile.ZipFile, name: str, spec: TensorSpec) -> Iterator[Tensor]:
    data = read_entry(arrays, arrays.getinfo(name), _NPZ_BYTES_MAX)
    return _rows(io.BytesIO(data), len(data), spec)


def _rows(stream: IO[bytes], size_bytes: int, spec: TensorSpec) -> Iterator[Tensor]:
    """Each row of an array in numpy's format, read as it is asked for: one sample, or samples along axis 0."""
    shape, is_fortran, dtype = _header(stream)
    if prod(shape) * dtype.itemsize != size_bytes - stream.tell():
        raise Unusable("its size is not what its header says")
    count = _count(shape, dtype, spec)
    if is_fortran and count > 1:
        raise Unusable("its samples are in Fortran order: save numpy.ascontiguousarray(array)")
    row_bytes = prod(spec.shape) * dtype.itemsize
    for _ in range(count):
        data = stream.read(row_bytes)
        if len(data) != row_bytes:
            raise Unusable("it ends early")
        yield np.frombuffer(data, dtype).reshape(spec.shape, order="F" if is_fortran else "C")


def _header(stream: IO[bytes]) -> tuple[Shape, bool, np.dtype[Any]]:
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, is_fortran, dtype = read[np.lib.format.read_magic(stream)](stream)
    except (ValueError, TypeError, KeyError, SyntaxError, tokenize.TokenError) as error:
        raise Unusable("it is not an array in numpy's format") from error
    if dtype.hasobject:
        raise Unusable("it holds Python objects, not numbers")
    return shape, is_fortran, dtype


def _count(shape: Shape, dtype: np.dtype[Any], spec: TensorSpec) -> int:
    found = f"{spec.name!r} is {dtype.name} {shape_text(shape)}; one sample is {spec.dtype.value}"
    if shape != spec.shape and shape[1:] != spec.shape:
        raise Unusable(f"{found} {shape_text(spec.shape)}", is_misfit=True)
    if not np.can_cast(dtype, spec.dtype.numpy, "same_kind"):
        raise Unusable(f"{found} {shape_text(spec.shape)}", is_misfit=True)
    return 1 if shape == spec.shape else shape[0]


def _checked(row: Tensors, inputs: Rows) -> Tensors:
    """The row in the inputs' own types; NaN and infinities are no samples."""
    made = {name: np.ascontiguousarray(tensor, inputs[name].dtype.numpy) for name, tensor in row.items()}
    for name, tensor in made.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise Unusable(f"{name!r} has NaN or infinities")
    return made
