"""A client that repeats its JSON header is read and answered as one that does not."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import numpy as np
import pytest

from app.api import v2_answers, v2_codec, v2_repeated
from app.domain.errors import InvalidRequest, TensorRejected
from app.domain.tensors import ANY, DType, Signature, TensorSpec
from tests.fakes import engine_record


def signature(dtype: DType = DType.FLOAT32) -> Signature:
    return Signature((TensorSpec("x", dtype, (ANY, 2)),), (TensorSpec("y", DType.FLOAT32, (ANY, 2)),), {}, 8)


SIGNATURE = signature()


def body(x: np.ndarray, **more: Any) -> tuple[memoryview, int]:
    entry = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    header = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}, **more}).encode()
    header += b" " * (-len(header) % 8)
    return memoryview(header + x.tobytes()), len(header)


def numbers(seed: int, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 2)).astype(np.float32)


@pytest.mark.parametrize(
    "more", [{}, {"id": "a"}, {"parameters": {"binary_data_output": True, "own": 3, "timeout": 5000}}]
)
def test_what_is_read_again_is_what_was_sent_again(more):
    reader = v2_repeated.Reader()
    for seed in range(4):
        sent = body(numbers(seed), **more)

        found, fresh = reader.decoded(*sent, SIGNATURE), v2_codec.decoded(*sent, SIGNATURE)

        np.testing.assert_array_equal(found.inputs["x"], numbers(seed))
        assert (found.id, found.parameters, found.outputs) == (fresh.id, fresh.parameters, fresh.outputs)
        assert found.timeout_s == fresh.timeout_s == (0.005 if "timeout" in str(more) else None)


def test_another_header_another_length_and_another_engine_are_noticed():
    reader = v2_repeated.Reader()
    reader.decoded(*body(numbers(1)), SIGNATURE)

    assert reader.decoded(*body(numbers(2, rows=3)), SIGNATURE).inputs["x"].shape == (3, 2)
    assert reader.decoded(*body(numbers(2), id="b"), SIGNATURE).id == "b"
    sent, header_bytes = body(numbers(2))
    reader.decoded(sent, header_bytes, SIGNATURE)
    with pytest.raises(InvalidRequest, match="left over"):
        reader.decoded(memoryview(bytes(sent) + b"x"), header_bytes, SIGNATURE)
    with pytest.raises(TensorRejected, match="datatype"):
        reader.decoded(sent, header_bytes, signature(DType.INT32))


def test_values_are_checked_anew_where_not_every_byte_is_one():
    reader, of = v2_repeated.Reader(), signature(DType.BOOL)
    sent, header_bytes = body(numbers(1))
    header = bytes(sent[:header_bytes]).replace(b'"FP32"', b'"BOOL"').replace(b": 8}", b": 2}")
    reader.decoded(memoryview(header + b"\0\1"), len(header), of)

    with pytest.raises(TensorRejected, match="other than 0 and 1"):
        reader.decoded(memoryview(header + b"\0\2"), len(header), of)


def test_a_request_that_is_over_is_not_kept_in_memory():
    reader = v2_repeated.Reader()
    sent, header_bytes = body(numbers(1))
    buffer = np.frombuffer(sent, np.uint8).copy()
    gone = weakref.ref(buffer)
    reader.decoded(buffer.data, header_bytes, SIGNATURE)

    del buffer
    gc.collect()

    assert gone() is None


def test_an_answer_of_the_same_form_is_written_as_the_first_was():
    writer, record = v2_repeated.Writer(), engine_record(version=3, signature=SIGNATURE)
    for seed, rows, more in ((1, 1, {}), (2, 1, {}), (3, 2, {}), (4, 1, {"id": "c"}), (5, 1, {}), (6, 1, {"id": "d"})):
        request = v2_codec.decoded(*body(numbers(seed, rows), **more), SIGNATURE)
        outputs = {"y": numbers(seed, rows)}

        pieces, header_bytes = writer.pieces(request, record, outputs)

        assert (b"".join(pieces), header_bytes) == v2_answers.encoded(request, record, outputs)
    newer = engine_record(version=4, signature=SIGNATURE)
    request = v2_codec.decoded(*body(numbers(1)), SIGNATURE)
    assert b'"4"' in bytes(writer.pieces(request, newer, {"y": numbers(1)})[0][0])
