"""Requests that the Open Inference codec refuses."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api import v2_codec, v2_tensors
from app.domain.errors import FeatureUnsupported, InvalidRequest, ServiceError, TensorRejected
from app.domain.tensors import DType
from tests.unit.v2_requests import X, binary_entry, entry, read, signature

ONE = {"inputs": [binary_entry()]}
BAD: dict[str, tuple[Any, bytes | None]] = {
    "not json": (b"{", None),
    "empty": (b"", None),
    "nan": (json.dumps({"inputs": [entry(data=[float("nan")] * 6)]}).encode(), None),
    "infinity": (json.dumps({"inputs": [entry(data=[float("inf")] * 6)]}).encode(), None),
    "null values": ({"inputs": [entry(data=[None] * 6)]}, None),
    "a list": ([], None),
    "inputs not a list": ({"inputs": {"x": 1}}, None),
    "inputs not objects": ({"inputs": [1]}, None),
    "nameless input": ({"inputs": [entry(name=None)]}, None),
    "long name": ({"inputs": [entry(name="x" * 9999)]}, None),
    "unknown input": ({"inputs": [entry(name="other")]}, None),
    "duplicate input": ({"inputs": [entry(), entry()]}, None),
    "no datatype": ({"inputs": [entry(datatype=None)]}, None),
    "unknown datatype": ({"inputs": [entry(datatype="FP7")]}, None),
    "datatype not text": ({"inputs": [entry(datatype=[["FP32"]])]}, None),
    "other datatype": ({"inputs": [entry(datatype="INT32")]}, None),
    "bf16": ({"inputs": [binary_entry(12, datatype="BF16")]}, bytes(12)),
    "no shape": ({"inputs": [entry(shape=None)]}, None),
    "shape not a list": ({"inputs": [entry(shape=6)]}, None),
    "negative length": ({"inputs": [entry(shape=[-2, -3])]}, None),
    "fractional length": ({"inputs": [entry(shape=[2.0, 3])]}, None),
    "boolean length": ({"inputs": [entry(shape=[True, 6])]}, None),
    "huge lengths": ({"inputs": [binary_entry(shape=[2**31, 2**31])]}, X.tobytes()),
    "beyond 64 bits": ({"inputs": [binary_entry(shape=[2**63, 2**63])]}, X.tobytes()),
    "huge and empty": ({"inputs": [binary_entry(0, shape=[0, 2**62, 2**62])]}, b""),
    "rank 33": ({"inputs": [entry(shape=[1] * 32 + [6])]}, None),
    "too few values": ({"inputs": [entry(data=[1, 2, 3])]}, None),
    "ragged values": ({"inputs": [entry(data=[[1, 2, 3], [4]])]}, None),
    "text values": ({"inputs": [entry(data=["1"] * 6)]}, None),
    "data not a list": ({"inputs": [entry(data=5)]}, None),
    "too large a value": ({"inputs": [entry(data=[1e300] * 6)]}, None),
    "too deep": (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", None),
    "neither data nor size": ({"inputs": [entry(data=None)]}, None),
    "data and size": ({"inputs": [entry(parameters={"binary_data_size": 24})]}, X.tobytes()),
    "size but all is json": (ONE, None),
    "size too large": ({"inputs": [binary_entry(2**40)]}, X.tobytes()),
    "size too small": ({"inputs": [binary_entry(20)]}, X.tobytes()),
    "size negative": ({"inputs": [binary_entry(-24)]}, X.tobytes()),
    "size fractional": ({"inputs": [binary_entry(24.0)]}, X.tobytes()),
    "size a boolean": ({"inputs": [binary_entry(True)]}, X.tobytes()),
    "size as text": ({"inputs": [binary_entry("24")]}, X.tobytes()),
    "bytes left over": (ONE, X.tobytes() + b"\0"),
    "bytes missing": (ONE, X.tobytes()[:-1]),
    "left over behind json": ({"inputs": [entry()]}, b"\0"),
    "parameters not an object": ({"inputs": [entry()], "parameters": [1]}, None),
    "nested parameter": ({"inputs": [entry()], "parameters": {"a": {"b": 1}}}, None),
    "input parameters not an object": ({"inputs": [entry(parameters=1)]}, None),
    "id not text": ({"inputs": [entry()], "id": 7}, None),
    "unknown output": ({"inputs": [entry()], "outputs": [{"name": "z"}]}, None),
    "duplicate output": ({"inputs": [entry()], "outputs": [{"name": "y"}, {"name": "y"}]}, None),
    "outputs not a list": ({"inputs": [entry()], "outputs": "y"}, None),
    "negative classes": ({"inputs": [entry()], "outputs": [{"name": "y", "parameters": {"classification": -1}}]}, None),
    "binary not a boolean": ({"inputs": [entry()], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, None),
    "image in json": ({"inputs": [entry(datatype="BYTES", shape=[1], data=["x"])]}, None),
    "no images": ({"inputs": [binary_entry(0, datatype="BYTES", shape=[0])]}, b""),
    "too many images": ({"inputs": [binary_entry(8, datatype="BYTES", shape=[10**9])]}, bytes(8)),
    "image lengths lie": ({"inputs": [binary_entry(5, datatype="BYTES", shape=[1])]}, struct.pack("<I", 9) + b"a"),
    "fewer images": ({"inputs": [binary_entry(8, datatype="BYTES", shape=[1])]}, bytes(8)),
    "more images": ({"inputs": [binary_entry(4, datatype="BYTES", shape=[2])]}, bytes(4)),
    "images in rows": ({"inputs": [binary_entry(8, datatype="BYTES", shape=[1, 2])]}, bytes(8)),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_request_that_lies_or_is_malformed_is_refused_with_a_short_message(kind: str) -> None:
    header, binary = BAD[kind]

    with pytest.raises((InvalidRequest, TensorRejected)) as refusal:
        read(header, binary)

    assert len(refusal.value.detail) < 1500 and refusal.value.hint


def test_shared_memory_is_said_to_be_unsupported() -> None:
    with pytest.raises(FeatureUnsupported):
        read({"inputs": [entry(data=None, parameters={"shared_memory_region": "r"})]})
    with pytest.raises(FeatureUnsupported):
        read({"inputs": [entry()], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]})


@pytest.mark.parametrize("datatype", ["INT8", "UINT64", "INT64"])
@pytest.mark.parametrize("value", [1.5, -(2**63) - 1, 2**64, 1e30])
def test_a_value_that_an_integer_type_cannot_hold_is_refused(datatype: str, value: float) -> None:
    dtype = next(dtype for dtype, name in v2_tensors.DATATYPES.items() if name == datatype)

    with pytest.raises(TensorRejected):
        read({"inputs": [entry(datatype=datatype, shape=[1, 2], data=[1, value])]}, of=signature(dtype))


def test_fp16_is_refused_in_json_both_ways() -> None:
    half = signature(DType.FLOAT16)
    binary_input = {"inputs": [binary_entry(12, datatype="FP16")]}

    with pytest.raises(TensorRejected):
        read({"inputs": [entry(datatype="FP16")], "parameters": {"binary_data_output": True}}, of=half)
    with pytest.raises(TensorRejected):
        read(binary_input, bytes(12), of=half)
    assert read({**binary_input, "parameters": {"binary_data_output": True}}, bytes(12), of=half).outputs


def test_a_boolean_is_one_byte_of_0_or_1() -> None:
    header = {"inputs": [binary_entry(6, datatype="BOOL")]}

    assert read(header, bytes([0, 1, 0, 1, 0, 1]), of=signature(DType.BOOL)).inputs["x"].sum() == 3
    with pytest.raises(TensorRejected):
        read(header, bytes([0, 1, 2, 1, 0, 1]), of=signature(DType.BOOL))


@pytest.mark.parametrize("text", ["-1", "1.5", "", "0x10", "²", "1" * 30, "12 "])
def test_a_header_length_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        v2_codec.header_length(text)


def test_a_header_longer_than_the_body_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        v2_codec.decoded(memoryview(b"{}"), 3, signature())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=9), children, max_size=4),
    max_leaves=9,
)
FIELDS = ["name", "datatype", "shape", "data", "parameters", "inputs", "outputs", "id", "classification"]


@given(st.data())
def test_no_request_however_odd_ends_in_anything_but_a_refusal(data: st.DataObject) -> None:
    request: dict[str, Any] = {"inputs": [entry() if data.draw(st.booleans()) else binary_entry()], "outputs": []}
    target = data.draw(st.sampled_from([request, request["inputs"][0]]))
    target[data.draw(st.sampled_from(FIELDS))] = data.draw(JSON_VALUES)

    try:
        read(json.dumps(request).encode(), data.draw(st.none() | st.binary(max_size=30)))
    except ServiceError as refusal:
        assert refusal.hint
