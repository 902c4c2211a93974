"""What an uploaded file is, told from its bytes without loading it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from app.domain.builds import ModelFormat
from app.domain.errors import EmptyUpload, ModelRejected
from app.storage import packages, strangers

_HEAD_BYTES = 1024
_HINT = (
    "Send ONNX (torch.onnx.export(model, (example,), 'model.onnx') writes it), TorchScript"
    " (torch.jit.save(torch.jit.script(model), 'model.pt')) or a program of torch.export"
    " (torch.export.save(torch.export.export(model, (example,)), 'model.pt2'))."
)


def model_format(path: Path) -> ModelFormat:
    """The format of an uploaded network.

    Raises:
        EmptyUpload: no bytes.
        ModelRejected: something else, or a file that is cut off; says what it looks like and how to make the right one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not head:
            raise EmptyUpload("The model file has no bytes.", hint="Check the path after the @ of curl's -F model=@….")
        if head.startswith(b"PK\x03\x04"):
            return packages.zip_format(path)
        if packages.is_tar(head):
            return packages.tar_format(path)
        if head.startswith(b"\x1f\x8b"):
            return packages.gzip_format(path)
        strangers.refuse_known(file, head, size)
        file.seek(0)
        _check_onnx(file, size)
    return ModelFormat.ONNX


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
        raise ModelRejected("The model file is not a network of a kind that this service reads.", hint=_HINT) from error
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
