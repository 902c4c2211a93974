"""Tensors as clients send and receive them: JSON, npy, npz, raw bytes."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Literal

import numpy as np
import orjson

from app.api.body_room import Holding
from app.domain.errors import InvalidRequest, InvalidShape, TensorRejected
from app.domain.tensors import ANY, DType, Shape, Signature, Tensor, Tensors, TensorSpec, described, shape_text

JSON_BYTES_MAX = 64 << 20  # as Triton's: JSON takes many times its size once parsed
_NOT_FINITE = re.compile(rb"NaN|Infinity")
_RANK_MAX = 32  # numpy's own limit
JSON_GROWTH = 8  # bytes that parsed JSON takes for each of its own, about; lists of nothing take more
_JSON_TYPES = {bool, int, float, list}  # no texts: numpy would make every one as long as the longest


def only_input(signature: Signature) -> TensorSpec:
    """The engine's single input, for bodies that carry one tensor without a name.

    Raises:
        TensorRejected: the engine has several inputs, or none.
    """
    if len(signature.inputs) != 1:
        raise TensorRejected(
            f"The body carries one tensor; the engine has {len(signature.inputs)} inputs.",
            hint=f"Send JSON or npz with every input by name: {described(signature.inputs) or 'none'}.",
        )
    return signature.inputs[0]


def check_json_size(nbytes: int, instead: str) -> None:
    """Refuse more JSON than the memory may be able to hold.

    Raises:
        InvalidRequest: it is too much.
    """
    if nbytes > JSON_BYTES_MAX:
        raise InvalidRequest(
            f"The JSON is {nbytes >> 20} MiB; at most {JSON_BYTES_MAX >> 20} are read.", hint=f"Send {instead}."
        )


def from_json(body: bytes | memoryview, signature: Signature) -> Tensors:
    """`{"inputs": {name: nested lists, …}}`, or `{"inputs": nested lists}` for a single input.

    Raises:
        InvalidRequest: not JSON (NaN and Infinity are not), too much of it, or not of that form.
        TensorRejected: a list is ragged or holds what the input's dtype cannot.
    """
    check_json_size(len(body), "npy, npz or bare bytes")
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        usual = 'Send {"inputs": {"name": [[…]]}}, or {"inputs": [[…]]}.'
        hint = "NaN and Infinity have no form in JSON; send npy or npz instead." if _NOT_FINITE.search(body) else usual
        raise InvalidRequest(f"The body is not JSON: {error}.", hint=hint) from error
    if not isinstance(parsed, dict) or "inputs" not in parsed:
        raise InvalidRequest(
            "The JSON body has no inputs.", hint='Send {"inputs": {"name": [[…]]}}, or {"inputs": [[…]]}.'
        )
    inputs = parsed["inputs"]
    if not isinstance(inputs, dict):
        inputs = {only_input(signature).name: inputs}
    return {name: from_lists(lists, signature.input(name)) for name, lists in inputs.items()}


def from_lists(lists: Any, spec: TensorSpec) -> Tensor:
    """Nested lists of JSON numbers as a tensor of the spec's dtype; its shape is that of the lists.

    Raises:
        TensorRejected: they are ragged, or hold what the dtype cannot.
    """
    try:
        if not _leaf_types(lists) <= _JSON_TYPES:
            raise _ragged(spec)
        tensor = np.asarray(lists)
        if spec.dtype is DType.UINT64 and tensor.dtype.kind == "f":  # numpy's own choice for a mix of small and huge
            tensor = _whole(lists, tensor)
    except (ValueError, TypeError) as error:
        raise _ragged(spec) from error
    if tensor.size == 0:
        return tensor.astype(spec.dtype.numpy)
    if tensor.dtype.kind not in "biuf":
        raise _ragged(spec)
    if tensor.dtype.kind == "f" and not spec.dtype.is_float:
        if (tensor == np.trunc(tensor)).all():  # whole numbers past 64 bits come as floats
            raise _out_of_range(spec)
        raise TensorRejected(
            f"The input {spec.name!r} is {spec.dtype.value}; the JSON holds fractions.", hint="Send whole numbers."
        )
    return _cast(tensor, spec)


def _leaf_types(lists: Any) -> set[type]:
    """The types of what lies as deep as the first value; lists among them where others lie deeper."""
    leaves: Iterable[Any] = [lists]
    first = lists
    while isinstance(first, list) and first:
        leaves, first = chain.from_iterable(leaves), first[0]
    return set(map(type, leaves))


def _whole(lists: Any, floats: Tensor) -> Tensor:
    """The lists as uint64 where they hold whole numbers of its range only, else as they were."""
    exact = np.asarray(lists, dtype=object)
    if all(type(value) is int and 0 <= value < 1 << 64 for value in exact.flat):
        return exact.astype(np.uint64)
    return floats


def _cast(tensor: Tensor, spec: TensorSpec) -> Tensor:
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.asarray(tensor, spec.dtype.numpy, order="C")
    lost = not np.array_equal(cast, tensor) if not spec.dtype.is_float else not np.isfinite(cast).all()
    if lost:
        raise _out_of_range(spec)
    return cast


def _out_of_range(spec: TensorSpec) -> TensorRejected:
    return TensorRejected(
        f"The input {spec.name!r} has values that {spec.dtype.value} cannot hold.", hint="Check the values."
    )


def _ragged(spec: TensorSpec) -> TensorRejected:
    return TensorRejected(
        f"The value of input {spec.name!r} is not a regular nested list of numbers.",
        hint=f"Its shape is {shape_text(spec.shape)} (-1 = any length), its dtype {spec.dtype.value}.",
    )


def from_npy(body: bytes | memoryview, what: str = "The body") -> Tensor:
    """One array in numpy's .npy format, without a copy of its data. Pickled objects are refused.

    Source: numpy.lib.format, versions 1.0 to 3.0.
    """
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    except Exception as error:  # numpy parses the header with ast and tokenize: their errors are many
        raise InvalidRequest(f"{what} is not in numpy's npy format.", hint="Write it with numpy.save.") from error
    if dtype.kind not in "biuf":
        raise InvalidRequest(f"{what} has dtype {dtype}, which is not numeric.", hint="Send numbers or booleans.")
    data = memoryview(body)[file.tell() :]
    if any(type(length) is not int or length < 0 for length in shape):
        raise _no_shape(shape)
    _check_bytes(len(data), shape, dtype.itemsize, what)
    array = _reshaped(np.frombuffer(data, dtype), shape, "F" if fortran_order else "C")
    return np.asarray(array, dtype.newbyteorder("="), order="C")


def from_npz(body: bytes | memoryview, limit_bytes: int, holding: Holding) -> Tensors:
    """Named arrays in numpy's .npz format.

    Args:
        limit_bytes: at most so much is unpacked.
        holding: takes room for it.

    Raises:
        BodiesFull: the bodies of other requests leave no room.
        InvalidRequest: not such an archive, or one of more.
    """
    hint = "Write it with numpy.savez(file, input_name=array)."
    tensors: Tensors = {}
    left = limit_bytes
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            for info in archive.infolist():
                holding.take(min(info.file_size, left + 1))
                with archive.open(info) as entry:
                    data = entry.read(left + 1)
                left -= len(data)
                if left < 0:
                    raise InvalidRequest(f"The npz unpacks to more than {limit_bytes >> 20} MiB.", hint="Send less.")
                name = info.filename.removesuffix(".npy")
                tensors[name] = from_npy(data, f"The npz entry {name[:80]!r}")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InvalidRequest("The body is not an npz archive.", hint=hint) from error
    except Exception as error:
        if type(error).__module__ not in ("zlib", "_lzma"):  # not every Python has the latter
            raise
        raise InvalidRequest("The npz archive is damaged.", hint=hint) from error
    return tensors


def from_raw(body: bytes | memoryview, signature: Signature, shape: Shape | None) -> Tensor:
    """The bytes of the only input, C order, little-endian; `shape` may be left out when one axis at most is open."""
    spec = only_input(signature)
    item = spec.dtype.numpy.itemsize
    wanted = shape if shape is not None else _closed(spec, len(body))
    _check_bytes(len(body), wanted, item, "The body")
    return _reshaped(np.frombuffer(body, spec.dtype.numpy), wanted)


def _reshaped(flat: Tensor, shape: Shape, order: Literal["C", "F"] = "C") -> Tensor:
    try:
        return flat.reshape(shape, order=order)
    except ValueError as error:  # no elements, yet lengths that no array can have; or too many axes
        raise _no_shape(shape) from error


def _no_shape(shape: Shape) -> InvalidShape:
    return InvalidShape(
        f"No tensor has the shape {shape_text(shape)[:80]}.", hint="Send the shape as the engine has it."
    )


def _closed(spec: TensorSpec, size_bytes: int) -> Shape:
    """The spec's shape with its one open axis computed from the number of bytes."""
    known = spec.dtype.numpy.itemsize
    for length in spec.shape:
        known *= length if length != ANY else 1
    if spec.shape.count(ANY) > 1 or known == 0:
        raise InvalidShape(
            f"The input {spec.name!r} is {shape_text(spec.shape)}: its shape does not follow from the number of bytes.",
            hint="Add ?shape=1x3x224x224 to the address.",
        )
    if ANY in spec.shape and size_bytes % known == 0:
        return tuple(size_bytes // known if length == ANY else length for length in spec.shape)
    return tuple(1 if length == ANY else length for length in spec.shape)


def parsed_shape(text: str) -> Shape:
    """`1x3x224x224` → (1, 3, 224, 224)."""
    if not re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})*", text) or text.count("x") >= _RANK_MAX:
        raise InvalidShape(f"{text[:80]!r} is not a shape.", hint="Write it as 1x3x224x224.")
    return tuple(int(length) for length in text.split("x"))


def _check_bytes(have: int, shape: Shape, item: int, what: str) -> None:
    want = item
    for length in shape:
        want *= length
    if have != want:
        raise TensorRejected(
            f"{what} has {have} bytes of data; shape {shape_text(shape)} with {item} bytes an element takes {want}.",
            hint="Check the shape and the dtype.",
        )


def to_json(outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Outputs as nested lists with shape and dtype. NaN and infinity become null."""
    return {
        name: {
            "shape": list(tensor.shape),
            "dtype": tensor.dtype.name,
            "data": np.asarray(tensor, _json_dtype(tensor), order="C")[()],  # of a scalar, its value
        }
        for name, tensor in outputs.items()
    }


def _json_dtype(tensor: Tensor) -> np.dtype[Any]:
    return np.dtype(np.float32) if tensor.dtype == np.float16 else tensor.dtype


def to_npz(outputs: Mapping[str, Tensor]) -> bytes:
    """Outputs by name, in the model's order, uncompressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, tensor in outputs.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(tensor), allow_pickle=False)
    return file.getvalue()
