"""What an uploaded file is, told from its bytes without loading it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from app.domain.builds import ModelFormat
from app.domain.errors import EmptyUpload, ModelRejected

_EXPORT = "Export it: torch.onnx.export(model, example, 'model.onnx')."
# First bytes of what people send by mistake, and what to do instead.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"\xff\xd8\xff", "a JPEG image", "Images go to POST /infer/{name}."),
    (b"\x89PNG", "a PNG image", "Images go to POST /infer/{name}."),
    (b"PK\x03\x04", "a zip archive (TorchScript, .pt and .pt2 files are zips too)", "Export it to ONNX."),
    (b"PK\x05\x06", "an empty zip archive", "Export the network to ONNX."),
    (b"\x80\x02\x8a\x0a\x6c\xfc", "an old PyTorch pickle", _EXPORT),
    (b"\x89HDF", "an HDF5 (Keras) file", "Export it to ONNX, for example with tf2onnx."),
    (b"\x1f\x8b", "a gzip file", "Send the .onnx file itself."),
    (b"ftrt", "a TensorRT engine", "Send the network it was built from."),
)
_HINT = "Send an ONNX file: torch.onnx.export(model, example, 'model.onnx') writes one."


def model_format(path: Path) -> ModelFormat:
    """The format of an uploaded network.

    Raises:
        EmptyUpload: no bytes.
        ModelRejected: something else, or an ONNX file that is cut off; says what it looks like.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if not head:
            raise EmptyUpload("The model file has no bytes.", hint="Check the path after the @ of curl's -F model=@….")
        for magic, what, hint in _FOREIGN:
            if head.startswith(magic):
                _refuse(what, hint)
        if head.startswith(b"\x80") and head[1:2] in b"\x02\x03\x04\x05":
            _refuse("a Python pickle", _EXPORT)
        if head[4:8] == b"TFL3":
            _refuse("a TFLite file", "Export it to ONNX, for example with tf2onnx.")
        file.seek(0)
        _check_onnx(file, size)
    return ModelFormat.ONNX


def _refuse(what: str, hint: str) -> None:
    raise ModelRejected(f"The model file is {what}; an ONNX network is wanted.", hint=hint)


def _check_onnx(file: BinaryIO, size: int) -> None:
    """Walk the top level of the protobuf message ModelProto: ir_version (1) and graph (7) must be there.

    Source: onnx.proto3; protobuf's wire format.
    """
    found: set[int] = set()
    fields = 0
    try:
        for number, wire_type, end in _fields(file, size):
            fields += 1
            if _MODEL_FIELDS.get(number) != wire_type or fields > _FIELDS_MAX:
                raise ValueError("not a field of ModelProto, or too many of them")
            if end > size:
                raise ModelRejected(
                    f"The ONNX file is cut off: it announces at least {end} bytes and has {size}.",
                    hint="Copy or export it again, and compare the file sizes.",
                )
            found.add(number)
    except ValueError as error:
        raise ModelRejected("The model file is not an ONNX network.", hint=_HINT) from error
    if not {1, 7} <= found:
        raise ModelRejected("The model file is not an ONNX network: it has no graph.", hint=_HINT)


_VARINT, _BYTES = 0, 2
_FIELDS_MAX = 100_000  # far beyond any network; bounds the walk over a hostile file
# ir_version, producer_name, producer_version, domain, model_version, doc_string, graph, opset_import,
# metadata_props, training_info, functions, configuration
_MODEL_FIELDS = {1: _VARINT, 5: _VARINT} | {n: _BYTES for n in (2, 3, 4, 6, 7, 8, 14, 20, 25, 26)}


def _fields(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """Field number, wire type and end position of each top-level field; the contents are skipped, not read."""
    while file.tell() < size:
        tag = _varint(file)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _BYTES:
            length = _varint(file)
            end = file.tell() + length
            yield number, wire_type, end
            file.seek(end)
        elif wire_type == _VARINT:
            _varint(file)
            yield number, wire_type, file.tell()
        else:
            raise ValueError("wire type that ModelProto does not use")


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("ends within a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("number too long")
