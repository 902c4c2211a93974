from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.backends.onnxruntime_models import Limits, opset_of
from app.build.graph import described_source, make_readable, parsed
from app.build.tolerances import tolerance_of
from app.domain.builds import HALF_TOLERANCE, INT8_TOLERANCE, TF32_TOLERANCE, Precision, Tolerance
from app.domain.errors import DTypeUnsupported, ModelInvalid, OpsetUnsupported
from tests import networks

NEWEST = Limits(ir=9, opset=17)


def relu(opset: int, ir: int = 9) -> onnx.ModelProto:
    model = networks.network(
        [helper.make_node("Relu", ["x"], ["y"])], [networks.value("x", [2])], [networks.value("y", [2])], opset=opset
    )
    model.ir_version = ir
    return model


def test_a_model_that_is_read_as_it_is_stays_unchanged():
    model = relu(opset=17)
    before = model.SerializeToString()

    assert make_readable(model, NEWEST) == []
    assert model.SerializeToString() == before


def test_a_newer_ir_version_is_lowered():
    model = relu(opset=17, ir=10)

    assert make_readable(model, NEWEST) == ["IR version 10 → 9"]
    assert model.ir_version == 9


def test_a_newer_opset_whose_operators_did_not_change_is_restamped():
    model = relu(opset=18)

    assert make_readable(model, NEWEST) == ["opset 18 → 17"]
    assert opset_of(model) == 17


def test_a_newer_opset_whose_operators_changed_is_refused_with_both_numbers():
    model = networks.network(
        [helper.make_node("ReduceMean", ["x"], ["y"])],
        [networks.value("x", [2])],
        [networks.value("y", [1])],
        opset=18,
    )
    with pytest.raises(OpsetUnsupported, match=r"opset 18 .*up to 17"):
        make_readable(model, NEWEST)


def test_an_opset_from_the_future_is_refused():
    with pytest.raises(OpsetUnsupported, match="opset 999"):
        make_readable(relu(opset=999), NEWEST)


def test_an_ir_version_from_the_future_is_refused():
    with pytest.raises(OpsetUnsupported, match="IR version 999"):
        make_readable(relu(opset=17, ir=999), NEWEST)


def test_an_old_opset_is_converted():
    model = relu(opset=6)

    assert make_readable(model, NEWEST) == ["opset 6 → 13"]
    assert opset_of(model) == 13


def test_an_old_opset_that_cannot_be_converted_is_refused():
    model = relu(opset=5)
    model.graph.node[0].op_type = "Nobody"

    with pytest.raises(OpsetUnsupported, match="opset 5, older than 7"):
        make_readable(model, NEWEST)


def test_a_model_without_operators_of_onnx_has_no_opset_to_convert():
    model = relu(opset=17)
    model.opset_import[0].domain = "acme"

    assert make_readable(model, NEWEST) == []


@pytest.mark.parametrize(("text", "damaged"), [(b"Mul", b"M\xffl"), (b"\x01x", b"\x01\xff"), (b"rows", b"r\xffws")])
def test_a_name_that_is_no_text_is_refused_as_damage(tmp_path, text, damaged):
    path = tmp_path / "model.onnx"
    path.write_bytes(networks.doubled().SerializeToString().replace(text, damaged))

    with pytest.raises(ModelInvalid, match="is not UTF-8"):
        parsed(path)


def test_inputs_that_are_initializers_are_not_inputs():
    source = described_source(networks.with_initializer_as_input())

    assert [spec.name for spec in source.inputs] == ["x"]


def test_open_axes_are_any_length_and_keep_their_names():
    source = described_source(networks.channel_means("height", -1))

    assert source.inputs[0].shape == (-1, 3, -1, -1)
    assert source.symbols["image"] == ("rows", "", "height", "")


def test_a_scalar_has_no_axes_and_a_missing_shape_is_not_a_scalar():
    assert described_source(networks.scalar_plus_one()).inputs[0].shape == ()

    model = networks.doubled()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelInvalid, match="input 'x' has no shape"):
        described_source(model)


@pytest.mark.parametrize("elem_type", [TensorProto.STRING, TensorProto.BFLOAT16, TensorProto.COMPLEX64, 999])
def test_element_types_that_engines_cannot_carry_are_refused_by_name(elem_type):
    with pytest.raises(DTypeUnsupported, match="input 'x'"):
        described_source(networks.same(elem_type))


def test_an_output_that_is_no_tensor_is_refused_by_name():
    model = networks.doubled()
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1])
    model.graph.output[0].CopyFrom(sequence)

    with pytest.raises(DTypeUnsupported, match="output 'y' is of type sequence"):
        described_source(model)


def test_the_description_counts_nodes_and_parameters():
    source = described_source(networks.convolved())

    assert (source.nodes, source.parameters, source.opset) == (2, 16 * 8 * 9, 17)
    assert "x float32 -1x8x8x8" in str(source)


def quantised() -> onnx.ModelProto:
    return networks.network(
        [
            helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
        ],
        [networks.value("x", [2])],
        [networks.value("y", [2])],
        [networks.constant("s", np.float32(0.1))],
    )


def cast_to_half_inside() -> onnx.ModelProto:
    return networks.network(
        [
            helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["half"], ["y"], to=TensorProto.FLOAT),
        ],
        [networks.value("x", [2])],
        [networks.value("y", [2])],
    )


def test_a_model_is_held_to_what_its_coarsest_number_format_allows():
    plain, half, inside, whole = (
        tolerance_of(described_source(model))
        for model in (networks.doubled(), networks.same(TensorProto.FLOAT16), cast_to_half_inside(), quantised())
    )

    assert plain == Tolerance()
    assert half == inside
    assert plain.sqnr_db > half.sqnr_db > whole.sqnr_db


def test_an_engine_is_held_to_what_its_precision_allows():
    source = described_source(networks.doubled())

    assert tolerance_of(source, precision=Precision.INT8) == INT8_TOLERANCE
    assert tolerance_of(source, precision=Precision.FP16) == HALF_TOLERANCE
    assert tolerance_of(source, tf32=True) == TF32_TOLERANCE
    assert INT8_TOLERANCE.sqnr_db < HALF_TOLERANCE.sqnr_db < TF32_TOLERANCE.sqnr_db < Tolerance().sqnr_db


def test_what_is_asked_for_counts_and_the_rest_stays_with_the_precision():
    asked = tolerance_of(described_source(networks.doubled()), {"sqnr_db": 12}, Precision.INT8)

    assert asked == replace(INT8_TOLERANCE, sqnr_db=12)


def test_random_operators_are_recognised():
    assert described_source(networks.noisy()).is_random
    assert not described_source(networks.doubled()).is_random
