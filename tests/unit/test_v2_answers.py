"""What the Open Inference codec writes, read by tritonclient's own codec."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient.http import InferenceServerClient, InferRequestedOutput, InferResult

from app.api import v2_answers, v2_codec, v2_tensors
from app.domain.tensors import DType, Signature, TensorSpec
from tests.fakes import engine_record
from tests.unit.v2_requests import NUMPY_TYPES, X, entry, of_specs, read, signature, triton_input


def answered(asked: v2_codec.InferRequest, y: np.ndarray, of: Signature, labels: tuple[str, ...] = ()) -> InferResult:
    body, header_bytes = v2_answers.encoded(asked, engine_record(version=3, signature=of, labels=labels), {"y": y})
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

    body, header_bytes = v2_answers.encoded(asked, engine_record(), {"y": X})

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

    body, header_bytes = v2_answers.encoded(asked, engine_record(signature=of_specs(*specs)), tensors)

    result = InferResult.from_response_body(body, header_length=header_bytes)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["b", "a"]
    assert result.as_numpy("a").tolist() == [1, 2]
    assert result.as_numpy("b").shape == () and result.as_numpy("b") == -3


def test_not_a_number_is_null_in_json() -> None:
    asked = read({"inputs": [entry()]})

    body, _ = v2_answers.encoded(asked, engine_record(), {"y": np.array([[np.nan, 1]], np.float32)})

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
