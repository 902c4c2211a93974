"""What the Open Inference codec reads and writes, byte for byte; tritonclient's own codec is the other side."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from app.api import v2_body, v2_codec, v2_tensors
from app.domain.errors import BodyTooLarge, FeatureUnsupported, InvalidRequest, ServiceError, TensorRejected
from app.domain.tensors import ANY, DType, Signature, TensorSpec
from tests.fakes import engine_record

LIMIT = 1 << 20
X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def signature(dtype: DType = DType.FLOAT32, *, rows_max: int = 4) -> Signature:
    """Inputs x and output y of any shape (rows, columns)."""
    return Signature((TensorSpec("x", dtype, (ANY, ANY)),), (TensorSpec("y", dtype, (ANY, ANY)),), {}, rows_max)


def of_specs(*specs: TensorSpec) -> Signature:
    return Signature(specs, specs, {}, 1)


def entry(**changes: Any) -> dict[str, Any]:
    """A JSON input that fits `signature()`; a change to None leaves the field out."""
    fields = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": X.tolist(), **changes}
    return {name: value for name, value in fields.items() if value is not None}


def binary_entry(size: Any = X.nbytes, **changes: Any) -> dict[str, Any]:
    return entry(data=None, parameters={"binary_data_size": size}, **changes)


def read(header: Any, binary: bytes | None = None, *, of: Signature | None = None) -> v2_codec.InferRequest:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = memoryview(text + (binary or b""))
    return v2_codec.decoded(body, None if binary is None else len(text), of or signature())


def triton_input(tensor: np.ndarray, datatype: str, *, binary: bool = True, name: str = "x") -> InferInput:
    made = InferInput(name, list(tensor.shape), datatype)
    made.set_data_from_numpy(tensor, binary_data=binary)
    return made


# --- requests ----------------------------------------------------------------------------------------------------


NUMPY_TYPES = st.sampled_from(sorted(v2_tensors.DATATYPES, key=str))


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


def test_uint64_values_of_any_size_are_read_exactly() -> None:
    values = [0, 1, 2**53 + 1, 2**64 - 1]

    asked = read({"inputs": [entry(datatype="UINT64", shape=[2, 2], data=values)]}, of=signature(DType.UINT64))

    assert asked.inputs["x"].ravel().tolist() == values


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


@pytest.mark.parametrize("text", ["-1", "1.5", "", "0x10", "²", "1" * 30, "12 "])
def test_a_header_length_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        v2_codec.header_length(text)


def test_an_engine_without_inputs_needs_none() -> None:
    asked = read({"inputs": []}, of=replace(signature(), inputs=()))

    assert not asked.inputs and len(asked.outputs) == 1


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


# --- answers -----------------------------------------------------------------------------------------------------


def answered(asked: v2_codec.InferRequest, y: np.ndarray, of: Signature, labels: tuple[str, ...] = ()) -> InferResult:
    body, header_bytes = v2_codec.encoded(asked, engine_record(version=3, signature=of, labels=labels), {"y": y})
    return InferResult.from_response_body(body, header_length=header_bytes)


def wanting(of: Signature, *outputs: InferRequestedOutput, **request: Any) -> v2_codec.InferRequest:
    x = np.zeros((1, 1), of.inputs[0].dtype.numpy)
    sent = triton_input(x, v2_tensors.DATATYPES[of.inputs[0].dtype])
    body, length = InferenceServerClient.generate_request_body([sent], outputs=list(outputs), **request)
    return v2_codec.decoded(memoryview(body), length, of)


@given(st.data(), NUMPY_TYPES, st.booleans())
def test_an_output_of_any_datatype_is_read_by_tritonclient(data: st.DataObject, dtype: DType, is_binary: bool) -> None:
    is_binary = is_binary or dtype is DType.FLOAT16
    y = data.draw(npst.arrays(dtype.numpy, npst.array_shapes(min_dims=2, max_dims=2, min_side=0)))
    if not is_binary and dtype.is_float:
        y = np.nan_to_num(y, posinf=0, neginf=0)
    of = signature(dtype)

    result = answered(wanting(of, InferRequestedOutput("y", binary_data=is_binary)), y.T, of)

    received = result.as_numpy("y")
    np.testing.assert_array_equal(received, y.T)
    if y.size:
        assert received.dtype == dtype.numpy


def test_an_answer_names_its_version_and_brings_back_id_and_the_clients_own_parameters() -> None:
    asked = wanting(signature(), request_id="r-1", timeout=5, priority=1, parameters={"camera": "left"})

    answer = answered(asked, X, signature()).get_response()

    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("net", "3", "r-1")
    assert answer["parameters"] == {"camera": "left"}


def test_an_answer_in_json_has_no_parameters_and_no_header_length() -> None:
    asked = read({"inputs": [entry()]})

    body, header_bytes = v2_codec.encoded(asked, engine_record(), {"y": X})

    assert header_bytes is None
    assert json.loads(body) == {
        "model_name": "net",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}],
    }


def test_outputs_come_in_the_order_in_which_they_are_asked_for() -> None:
    specs = TensorSpec("a", DType.UINT8, (2,)), TensorSpec("b", DType.INT32, ())
    tensors = {"a": np.array([1, 2], np.uint8), "b": np.array(-3, np.int32)}
    outputs = [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}]
    header = {"inputs": [entry(name="a", datatype="UINT8", shape=[2], data=[1, 2])], "outputs": outputs}
    asked = read(header, of=of_specs(*specs))

    body, header_bytes = v2_codec.encoded(asked, engine_record(signature=of_specs(*specs)), tensors)

    result = InferResult.from_response_body(body, header_length=header_bytes)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["b", "a"]
    assert result.as_numpy("a").tolist() == [1, 2]
    assert result.as_numpy("b").shape == () and result.as_numpy("b") == -3


def test_not_a_number_is_null_in_json() -> None:
    asked = read({"inputs": [entry()]})

    body, _ = v2_codec.encoded(asked, engine_record(), {"y": np.array([[np.nan, 1]], np.float32)})

    assert json.loads(body)["outputs"][0]["data"] == [None, 1]


@pytest.mark.parametrize("is_binary", [True, False])
def test_classes_are_ranked_in_each_row_with_their_labels(is_binary: bool) -> None:
    scores = np.array([[0.25, 0.5, 0.5], [3, -1.5, 1e-9]], np.float32)
    asked = wanting(signature(), InferRequestedOutput("y", binary_data=is_binary, class_count=2))

    result = answered(asked, scores, signature(), labels=("ant", "bee"))

    ranked = [[text if isinstance(text, str) else text.decode() for text in row] for row in result.as_numpy("y")]
    assert ranked == [["0.500000:1:bee", "0.500000:2"], ["3.000000:0:ant", "0.000000:2"]]
    assert result.get_output("y")["datatype"] == "BYTES"


def test_of_equal_scores_the_lower_index_comes_first() -> None:
    asked = wanting(signature(), InferRequestedOutput("y", class_count=300))

    ranked = answered(asked, np.tile(np.float32([1, 2]), (1, 150)), signature()).as_numpy("y")[0]

    assert [int(text.split(b":")[1]) for text in ranked] == [*range(1, 300, 2), *range(0, 300, 2)]


def test_classes_of_an_engine_without_a_batch_axis_are_ranked_over_the_whole_tensor() -> None:
    of = replace(signature(), rows_max=1)
    asked = wanting(of, InferRequestedOutput("y", class_count=9))

    result = answered(asked, np.array([[1, 9], [4, 0]], np.float32), of)

    assert result.as_numpy("y").tolist() == [b"9.000000:1", b"4.000000:2", b"1.000000:0", b"0.000000:3"]


@pytest.mark.parametrize(
    ("dtype", "values", "best"),
    [
        (DType.UINT8, [0, 255, 3], "255:1"),
        (DType.INT8, [-128, -1, -127], "-1:1"),
        (DType.INT64, [-(2**63), 2**63 - 1, 0], f"{2**63 - 1}:1"),
        (DType.BOOL, [False, True, True], "1:1"),
        (DType.FLOAT16, [0.5, 1.5, 0.25], "1.500000:1"),
        (DType.FLOAT64, [float("nan"), 1.0, float("-inf")], "1.000000:1"),
    ],
)
def test_classes_of_every_kind_of_number_are_ranked(dtype: DType, values: list[Any], best: str) -> None:
    of = signature(dtype)
    asked = wanting(of, InferRequestedOutput("y", class_count=1))

    result = answered(asked, np.array([values], dtype.numpy), of)

    assert result.as_numpy("y").tolist() == [[best.encode()]]


# --- bodies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body_comes_back_as_it_was(coding: str) -> None:
    data = X.tobytes() * 99
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}[coding](data)

    assert bytes(v2_body.inflated(memoryview(packed), coding, LIMIT)) == data
    assert bytes(v2_body.inflated(memoryview(v2_body.deflated(data, coding)), coding, LIMIT)) == data


def test_a_bomb_is_refused_before_it_unfolds() -> None:
    bomb = gzip.compress(bytes(64 << 20))

    with pytest.raises(BodyTooLarge):
        v2_body.inflated(memoryview(bomb), "gzip", LIMIT)


@pytest.mark.parametrize(
    "packed",
    [b"", b"hello", gzip.compress(b"x")[:-1], gzip.compress(b"x") + b"y", gzip.compress(b"x") * 2, zlib.compress(b"x")],
    ids=["empty", "text", "truncated", "left over", "twice", "zlib"],
)
def test_a_damaged_compressed_body_is_refused(packed: bytes) -> None:
    with pytest.raises(InvalidRequest):
        v2_body.inflated(memoryview(packed), "gzip", LIMIT)


def test_another_coding_is_said_to_be_unsupported() -> None:
    with pytest.raises(FeatureUnsupported):
        v2_body.inflated(memoryview(b"x"), "br", LIMIT)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"),
        ("Deflate", "deflate"),
        ("gzip;q=0.5, identity;q=0.1", "gzip"),
        ("deflate, gzip;q=0", "deflate"),
        ("gzip, deflate, br", None),
        ("gzip;q=0", None),
        ("identity", None),
        ("br", None),
        ("*", None),
        ("", None),
    ],
)
def test_an_answer_is_compressed_for_clients_that_name_one_coding(accept: str, coding: str | None) -> None:
    assert v2_body.wanted_coding(accept) == coding


@given(st.lists(st.binary(max_size=9), max_size=9), st.integers(0, 99))
def test_a_body_is_put_together_with_its_tensors_aligned(pieces: list[bytes], offset: int) -> None:
    whole = b"".join(pieces)

    body = v2_body.placed(pieces, len(whole), offset)

    assert bytes(body) == whole and body.readonly
    if offset < len(whole):
        assert np.frombuffer(body[offset:], np.uint8).ctypes.data % v2_body.ALIGNMENT == 0
