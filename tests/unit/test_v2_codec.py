"""What the Open Inference codec reads, byte for byte; tritonclient's own codec is the other side."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient.http import InferenceServerClient

from app.api import v2_body, v2_codec, v2_tensors
from app.domain.errors import TensorRejected
from app.domain.tensors import ANY, DType, Signature, TensorSpec
from tests.unit.v2_requests import NUMPY_TYPES, X, binary_entry, entry, of_specs, read, signature, triton_input


@given(st.data(), NUMPY_TYPES)
def test_a_tensor_of_any_datatype_comes_through_as_tritonclient_sends_it(data: st.DataObject, dtype: DType) -> None:
    tensor = data.draw(npst.arrays(dtype.numpy, npst.array_shapes(min_dims=2, max_dims=2, min_side=0)))
    sent = triton_input(tensor, v2_tensors.DATATYPES[dtype])
    body, header_bytes = InferenceServerClient.generate_request_body([sent])

    asked = v2_codec.decoded(memoryview(body), header_bytes, signature(dtype))

    received = asked.inputs["x"]
    assert received.dtype == tensor.dtype and received.flags.aligned
    assert received.tobytes() == tensor.tobytes() and received.shape == tensor.shape


@given(st.data(), st.sampled_from([dtype for dtype in v2_tensors.DATATYPES if dtype is not DType.FLOAT16]))
def test_json_values_of_any_datatype_come_through_exactly(data: st.DataObject, dtype: DType) -> None:
    finite = npst.from_dtype(dtype.numpy, allow_nan=False, allow_infinity=False)
    tensor = data.draw(npst.arrays(dtype.numpy, st.just((2, 3)), elements=finite))
    sent = triton_input(tensor, v2_tensors.DATATYPES[dtype], binary=False)
    body, header_bytes = InferenceServerClient.generate_request_body([sent])

    asked = v2_codec.decoded(memoryview(body), header_bytes, signature(dtype))

    assert header_bytes is None
    np.testing.assert_array_equal(asked.inputs["x"], tensor)


def test_an_aligned_tensor_is_read_where_it_lies() -> None:
    header = json.dumps({"inputs": [binary_entry()]}).encode()
    pieces = [header, X.tobytes()]
    body = v2_body.placed(pieces, len(header) + X.nbytes, len(header))

    asked = v2_codec.decoded(body, len(header), signature())

    assert np.shares_memory(asked.inputs["x"], np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("data", [X.tolist(), X.ravel().tolist(), [[[1], [2]], [[3], [4]], [[5], [6]]]])
def test_json_values_may_be_flat_or_nested(data: Any) -> None:
    asked = read({"inputs": [entry(data=data)]})

    np.testing.assert_array_equal(asked.inputs["x"], X)


def test_binary_tensors_follow_each_other_in_the_order_of_the_inputs() -> None:
    specs = TensorSpec("a", DType.UINT8, (3,)), TensorSpec("b", DType.INT64, (1,)), TensorSpec("c", DType.BOOL, ())
    header = {
        "inputs": [
            binary_entry(8, name="b", shape=[1], datatype="INT64"),
            entry(name="c", shape=[], datatype="BOOL", data=[True]),
            binary_entry(3, name="a", shape=[3], datatype="UINT8"),
        ]
    }

    asked = read(header, struct.pack("<q3B", -5, 7, 8, 9), of=of_specs(*specs))

    assert asked.inputs["b"].tolist() == [-5]
    assert asked.inputs["a"].tolist() == [7, 8, 9]
    assert asked.inputs["c"].shape == () and bool(asked.inputs["c"]) is True


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_a_bytes_input_is_encoded_images(shape: list[int]) -> None:
    images = np.array([b"first", b""], object).reshape(shape)
    body, header_bytes = InferenceServerClient.generate_request_body([triton_input(images, "BYTES")])

    asked = v2_codec.decoded(memoryview(body), header_bytes, signature())

    assert [bytes(image) for image in asked.images] == [b"first", b""]
    assert not asked.inputs


@pytest.mark.parametrize(
    ("spec", "rows_max", "size", "shape"),
    [
        (TensorSpec("x", DType.FLOAT32, (ANY, 3)), 4, 12, (1, 3)),
        (TensorSpec("x", DType.FLOAT32, (ANY, 3)), 4, 24, (2, 3)),
        (TensorSpec("x", DType.FLOAT32, (ANY, ANY)), 4, 24, (1, 6)),
        (TensorSpec("x", DType.FLOAT32, (2, ANY)), 1, 24, (2, 3)),
        (TensorSpec("x", DType.UINT8, (2, 3)), 1, 6, (2, 3)),
        (TensorSpec("x", DType.UINT8, ()), 1, 1, ()),
    ],
)
def test_a_header_of_no_length_means_one_raw_tensor_and_binary_answers(
    spec: TensorSpec, rows_max: int, size: int, shape: tuple[int, ...]
) -> None:
    asked = v2_codec.decoded(memoryview(bytes(size)), 0, Signature((spec,), (spec,), {}, rows_max))

    assert asked.inputs["x"].shape == shape
    assert [wanted.is_binary for wanted in asked.outputs] == [True]


@pytest.mark.parametrize(
    ("specs", "size"),
    [
        ([TensorSpec("x", DType.FLOAT32, (ANY, 3))], 13),
        ([TensorSpec("x", DType.FLOAT32, (ANY, 3))], 0),
        ([TensorSpec("x", DType.FLOAT32, (ANY, ANY))], 12),
        ([TensorSpec("x", DType.FLOAT32, (3,))], 24),
        ([TensorSpec("x", DType.FLOAT32, (ANY, 0))], 24),
        ([TensorSpec("x", DType.UINT8, (3,)), TensorSpec("z", DType.UINT8, (3,))], 6),
    ],
)
def test_a_raw_body_that_is_not_the_only_input_is_refused(specs: list[TensorSpec], size: int) -> None:
    with pytest.raises(TensorRejected):
        v2_codec.decoded(memoryview(bytes(size)), 0, of_specs(*specs))


def test_uint64_values_of_any_size_are_read_exactly() -> None:
    values = [0, 1, 2**53 + 1, 2**64 - 1]

    asked = read({"inputs": [entry(datatype="UINT64", shape=[2, 2], data=values)]}, of=signature(DType.UINT64))

    assert asked.inputs["x"].ravel().tolist() == values


@pytest.mark.parametrize(
    ("by_request", "by_output", "is_binary"),
    [(None, None, False), (True, None, True), (False, None, False), (True, False, False), (None, True, True)],
)
def test_an_output_says_for_itself_whether_it_is_binary_else_the_request_does(
    by_request: bool | None, by_output: bool | None, is_binary: bool
) -> None:
    parameters = {} if by_request is None else {"binary_data_output": by_request}
    output = {"name": "y"} if by_output is None else {"name": "y", "parameters": {"binary_data": by_output}}

    asked = read({"inputs": [entry()], "parameters": parameters, "outputs": [output]})

    assert [wanted.is_binary for wanted in asked.outputs] == [is_binary]


def test_an_engine_without_inputs_needs_none() -> None:
    asked = read({"inputs": []}, of=replace(signature(), inputs=()))

    assert not asked.inputs and len(asked.outputs) == 1
