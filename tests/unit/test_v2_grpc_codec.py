"""What the gRPC codec reads and writes; tritonclient's messages are the other side."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient.grpc import InferInput, InferResult, service_pb2

from app.api import v2_tensors
from app.api.grpc import codec
from app.api.grpc import open_inference_pb2 as pb
from app.domain.errors import FeatureUnsupported, InvalidRequest, TensorRejected
from app.domain.tensors import DType, Signature
from app.serving.service import Answer
from tests.fakes import engine_record
from tests.unit.v2_requests import NUMPY_TYPES, X, signature

CONTENTS = {
    **dict.fromkeys([DType.INT8, DType.INT16, DType.INT32], "int_contents"),
    **dict.fromkeys([DType.UINT8, DType.UINT16, DType.UINT32], "uint_contents"),
    DType.BOOL: "bool_contents",
    DType.INT64: "int64_contents",
    DType.UINT64: "uint64_contents",
    DType.FLOAT32: "fp32_contents",
    DType.FLOAT64: "fp64_contents",
}


# --- reading -----------------------------------------------------------------------------------------------------


def asked_for(tensor: np.ndarray, *, raw: bool = True, datatype: str = "", **changes: Any) -> Any:
    """A request for input x of this tensor, raw or in typed contents."""
    dtype = DType(tensor.dtype.name)
    message = pb.ModelInferRequest(model_name="net", **changes)
    made = message.inputs.add(name="x", datatype=datatype or v2_tensors.DATATYPES[dtype], shape=tensor.shape)
    if raw:
        message.raw_input_contents.append(tensor.tobytes())
    else:
        getattr(made.contents, CONTENTS[dtype]).extend(tensor.ravel().tolist())
    return message


@given(st.data(), NUMPY_TYPES)
def test_a_raw_tensor_of_any_datatype_comes_through_as_tritonclient_sends_it(data: Any, dtype: DType) -> None:
    tensor = data.draw(npst.arrays(dtype.numpy, npst.array_shapes(min_dims=2, max_dims=2, min_side=0)))
    sent = InferInput("x", list(tensor.shape), v2_tensors.DATATYPES[dtype])
    sent.set_data_from_numpy(tensor)
    theirs = service_pb2.ModelInferRequest(inputs=[sent._get_tensor()], raw_input_contents=[sent._get_content()])

    read = codec.decoded(pb.ModelInferRequest.FromString(theirs.SerializeToString()), signature(dtype)).inputs["x"]

    assert read.dtype == tensor.dtype and read.shape == tensor.shape and read.flags.aligned
    assert read.tobytes() == tensor.tobytes()


@given(st.data(), st.sampled_from(sorted(CONTENTS, key=str)))
def test_typed_contents_of_any_datatype_come_through_exactly(data: Any, dtype: DType) -> None:
    tensor = data.draw(npst.arrays(dtype.numpy, st.just((2, 3)), elements=npst.from_dtype(dtype.numpy)))

    read = codec.decoded(asked_for(tensor, raw=False), signature(dtype)).inputs["x"]

    assert read.dtype == tensor.dtype
    np.testing.assert_array_equal(read, tensor)


def test_a_raw_tensor_is_read_where_it_lies() -> None:
    message = asked_for(X)

    read = codec.decoded(message, signature()).inputs["x"]

    assert not read.flags.owndata and not read.flags.writeable


@pytest.mark.parametrize("raw", [True, False])
def test_a_bytes_input_is_encoded_images(raw: bool) -> None:
    message = pb.ModelInferRequest()
    made = message.inputs.add(name="x", datatype="BYTES", shape=[2])
    if raw:
        message.raw_input_contents.append(struct.pack("<I", 5) + b"first" + struct.pack("<I", 0))
    else:
        made.contents.bytes_contents.extend([b"first", b""])

    assert [bytes(image) for image in codec.decoded(message, signature()).images] == [b"first", b""]


def bad_requests() -> dict[str, Any]:
    """Requests for `signature()` that cannot be answered."""
    small, made = X.astype(np.int32), {}
    for name, raw in {"short": X.tobytes()[:-1], "long": X.tobytes() + b"\0", "empty": b""}.items():
        made[f"raw contents too {name}"] = asked_for(X)
        made[f"raw contents too {name}"].raw_input_contents[0] = raw
    for name, shape in {"negative": [-2, -3], "huge": [2**31, 2**31], "beyond": [2**62, 2**62], "none": []}.items():
        made[f"shape {name}"] = asked_for(X)
        made[f"shape {name}"].inputs[0].shape[:] = shape
    made["shape of empty and huge"] = asked_for(X)
    made["shape of empty and huge"].inputs[0].shape[:] = [0, 2**62, 2**62]
    made["shape of empty and huge"].raw_input_contents[0] = b""
    made["more raw contents than inputs"] = asked_for(X)
    made["more raw contents than inputs"].raw_input_contents.append(b"")
    made["fewer raw contents than inputs"] = asked_for(X)
    made["fewer raw contents than inputs"].inputs.add(name="z")
    made["raw and typed"] = asked_for(X, raw=False)
    made["raw and typed"].raw_input_contents.append(X.tobytes())
    made["neither raw nor typed"] = asked_for(X)
    del made["neither raw nor typed"].raw_input_contents[:]
    made["too few typed values"] = asked_for(X[:1], raw=False)
    made["too few typed values"].inputs[0].shape[:] = X.shape
    made["contents of another type"] = asked_for(small, raw=False, datatype="FP32")
    made["contents of two types"] = asked_for(X, raw=False)
    made["contents of two types"].inputs[0].contents.int_contents.append(1)
    made["other datatype"] = asked_for(small)
    made["bf16"] = asked_for(X, datatype="BF16")
    made["no datatype"] = asked_for(X)
    made["no datatype"].inputs[0].datatype = ""
    made["unknown input"] = asked_for(X)
    made["unknown input"].inputs[0].name = "z"
    made["duplicate input"] = asked_for(X)
    made["duplicate input"].inputs.append(made["duplicate input"].inputs[0])
    made["duplicate input"].raw_input_contents.append(X.tobytes())
    made["unknown output"] = asked_for(X)
    made["unknown output"].outputs.add(name="z")
    made["duplicate output"] = asked_for(X)
    made["duplicate output"].outputs.extend([pb.ModelInferRequest.InferRequestedOutputTensor(name="y")] * 2)
    made["parameter without a value"] = asked_for(X)
    made["parameter without a value"].parameters["a"].SetInParent()
    made["negative classes"] = asked_for(X)
    made["negative classes"].outputs.add(name="y").parameters["classification"].int64_param = -1
    return made


@pytest.mark.parametrize("kind", bad_requests())
def test_a_request_that_contradicts_itself_or_the_engine_is_refused(kind: str) -> None:
    with pytest.raises((InvalidRequest, TensorRejected)) as refusal:
        codec.decoded(bad_requests()[kind], signature())

    assert len(refusal.value.detail) < 1500 and refusal.value.hint


@pytest.mark.parametrize(("dtype", "value"), [(DType.INT8, 128), (DType.INT16, -(2**15) - 1), (DType.UINT8, 256)])
def test_a_value_beyond_a_small_integer_type_is_refused(dtype: DType, value: int) -> None:
    message = asked_for(np.zeros((1, 1), dtype.numpy), raw=False)
    getattr(message.inputs[0].contents, CONTENTS[dtype])[0] = value

    with pytest.raises(TensorRejected):
        codec.decoded(message, signature(dtype))


def test_fp16_travels_raw_only_both_ways() -> None:
    half = signature(DType.FLOAT16)
    typed_input = asked_for(X, raw=False, datatype="FP16")
    typed_output = asked_for(X.astype(np.float16))
    typed_output.parameters["binary_data_output"].bool_param = False

    with pytest.raises(TensorRejected):
        codec.decoded(typed_input, half)
    with pytest.raises(TensorRejected):
        codec.decoded(typed_output, half)
    assert codec.decoded(asked_for(X.astype(np.float16)), half).inputs["x"].dtype == np.float16


def test_shared_memory_is_said_to_be_unsupported() -> None:
    message = asked_for(X)
    del message.raw_input_contents[:]
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"

    with pytest.raises(FeatureUnsupported):
        codec.decoded(message, signature())


@pytest.mark.parametrize(("choice", "value"), [("int64_param", -1), ("string_param", "1"), ("bool_param", True)])
def test_a_timeout_that_is_no_length_of_time_is_refused(choice: str, value: Any) -> None:
    message = asked_for(X)
    setattr(message.parameters["timeout"], choice, value)

    with pytest.raises(InvalidRequest):
        codec.timeout_s(message)


# --- writing -----------------------------------------------------------------------------------------------------


def answered(message: Any, y: np.ndarray, of: Signature) -> Any:
    """The answer to a request, as tritonclient's own message."""
    record = engine_record(version=3, signature=of, labels=("a", "b", "c"))
    made = codec.encoded(codec.decoded(message, of), Answer(record, {"y": y}, {}, 1))
    return service_pb2.ModelInferResponse.FromString(made.SerializeToString())


@given(st.data(), NUMPY_TYPES)
def test_a_raw_output_of_any_datatype_is_read_by_tritonclient(data: Any, dtype: DType) -> None:
    y = data.draw(npst.arrays(dtype.numpy, npst.array_shapes(min_dims=2, max_dims=2, min_side=0)))

    received = InferResult(answered(asked_for(np.zeros((1, 1), dtype.numpy)), y.T, signature(dtype))).as_numpy("y")

    np.testing.assert_array_equal(received, y.T)


@given(st.data(), st.sampled_from(sorted(CONTENTS, key=str)))
def test_an_output_that_is_not_wanted_as_binary_data_is_typed(data: Any, dtype: DType) -> None:
    y = data.draw(npst.arrays(dtype.numpy, st.just((2, 3)), elements=npst.from_dtype(dtype.numpy)))
    message = asked_for(np.zeros((1, 1), dtype.numpy))
    message.parameters["binary_data_output"].bool_param = False

    answer = answered(message, y, signature(dtype))

    assert not answer.raw_output_contents and list(answer.outputs[0].shape) == [2, 3]
    contents = getattr(answer.outputs[0].contents, CONTENTS[dtype])
    np.testing.assert_array_equal(np.array(contents, dtype.numpy).reshape(2, 3), y)


def test_outputs_are_all_raw_or_all_typed() -> None:
    spec = signature().outputs[0]
    two = Signature(signature().inputs, (spec, type(spec)("z", spec.dtype, spec.shape)), {}, 4)
    message = asked_for(X)
    for name, is_binary in (("y", True), ("z", False)):
        message.outputs.add(name=name).parameters["binary_data"].bool_param = is_binary

    with pytest.raises(InvalidRequest):
        codec.decoded(message, two)


@pytest.mark.parametrize("is_binary", [True, False])
def test_classes_are_ranked_with_their_labels(is_binary: bool) -> None:
    message = asked_for(X)
    wanted = message.outputs.add(name="y")
    wanted.parameters["classification"].int64_param = 2
    wanted.parameters["binary_data"].bool_param = is_binary

    answer = answered(message, X, signature())

    texts = [b"3.000000:2:c", b"2.000000:1:b", b"6.000000:2:c", b"5.000000:1:b"]
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [2, 2])
    assert list(answer.outputs[0].contents.bytes_contents) == ([] if is_binary else texts)
    assert not is_binary or InferResult(answer).as_numpy("y").ravel().tolist() == texts


def test_an_answer_names_its_version_and_brings_back_id_and_the_clients_own_parameters() -> None:
    message = asked_for(X, id="r-1")
    own = {"camera": "left", "gain": 0.5, "frame": -7, "huge": 2**64 - 1, "live": True}
    for name, value in own.items():
        codec.set_parameter(message, name, value)
    message.parameters["timeout"].int64_param = 5
    message.parameters["triton_enable_empty_final_response"].bool_param = True

    answer = answered(message, X, signature())

    assert (answer.model_name, answer.model_version, answer.id) == ("net", "3", "r-1")
    returned = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in answer.parameters.items()}
    assert returned == own
