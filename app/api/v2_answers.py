"""Answers of the Open Inference Protocol: a JSON header, then the binary tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from app.api import v2_tensors
from app.api.responses import Piece, json_bytes, raw
from app.api.v2_codec import InferRequest, WantedOutput
from app.domain.builds import EngineRecord
from app.domain.tensors import Tensor, Tensors


def encoded(request: InferRequest, record: EngineRecord, outputs: Tensors) -> tuple[bytes, int | None]:
    """Write the answer.

    Returns:
        The body, and the length of its JSON header; None when all of it is JSON.
    """
    pieces, size = encoded_pieces(request, record, outputs)
    return b"".join(pieces), size


def encoded_pieces(request: InferRequest, record: EngineRecord, outputs: Tensors) -> tuple[list[Piece], int | None]:
    """As `encoded`, with the binary tensors as they lie in memory."""
    header: dict[str, Any] = {"model_name": record.name, "model_version": str(record.version)}
    if request.id:
        header["id"] = request.id
    if request.parameters:
        header["parameters"] = request.parameters
    entries, blobs = [], []
    for wanted in request.outputs:
        entry, blob = output_entry(wanted, outputs[wanted.spec.name], record)
        entries.append(entry)
        if blob is not None:
            blobs.append(blob if isinstance(blob, memoryview) else raw(blob))
    header["outputs"] = entries
    text = json_bytes(header)
    return [text, *blobs], len(text) if blobs else None


def output_entry(wanted: WantedOutput, tensor: Tensor, record: EngineRecord) -> tuple[dict[str, Any], Any]:
    """An output's entry in the header, and its binary data (a buffer); None where the entry holds the data."""
    datatype, shape = v2_tensors.DATATYPES[wanted.spec.dtype], tensor.shape
    data: Any = np.ascontiguousarray(tensor).reshape(-1)
    if wanted.classes:
        by_row = record.built.signature.rows_max > 1
        shape, data = v2_tensors.classified(tensor, wanted.classes, record.built.labels, by_row=by_row)
        datatype = v2_tensors.BYTES
        if wanted.is_binary:
            data = memoryview(v2_tensors.bytes_tensor(data))
    entry: dict[str, Any] = {"name": wanted.spec.name, "datatype": datatype, "shape": list(shape)}
    if wanted.is_binary:
        entry["parameters"] = {"binary_data_size": data.nbytes}
        return entry, data
    # Without parameters: the C++ client takes them for a promise of binary data.
    entry["data"] = data
    return entry, None
