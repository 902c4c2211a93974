"""Which tensors an engine's signature admits, and what is said of the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import TensorRejected
from app.domain.tensors import ANY, DType, ShapeRange, Signature, Tensors, TensorSpec, check_inputs, shape_text

IMAGE = TensorSpec("image", DType.FLOAT32, (ANY, 3, 4))
SIZE = TensorSpec("size", DType.INT64, (ANY,))
SCORES = TensorSpec("scores", DType.FLOAT32, (ANY, 10))

BY_ROW = Signature((IMAGE, SIZE), (SCORES,), {"image": ShapeRange((1, 3, 4), (2, 3, 4), (8, 3, 4))}, rows_max=8)
AS_ONE = Signature((IMAGE, SIZE), (SCORES,))


def inputs(image_rows: int = 2, size_rows: int = 2) -> Tensors:
    return {"image": np.zeros((image_rows, 3, 4), np.float32), "size": np.zeros(size_rows, np.int64)}


def test_tensors_that_fit_pass_in_any_order() -> None:
    check_inputs(inputs(), BY_ROW)
    check_inputs(dict(reversed(inputs().items())), BY_ROW)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"size": None}, "The input 'size' is missing.", "image float32 -1x3x4, size int64 -1"),
        ({"mask": np.zeros(1)}, "The engine has no input named 'mask'.", "Its inputs are: image float32 -1x3x4"),
        (
            {"image": np.zeros((2, 3, 4))},
            "The input 'image' has dtype float64; the engine wants float32.",
            "astype('float32')",
        ),
        (
            {"image": np.zeros((2, 3, 4), ">f4")},
            "The input 'image' has dtype float32 in foreign byte order; the engine wants float32.",
            "astype('float32')",
        ),
        (
            {"image": np.zeros((2, 4, 3), np.float32)},
            "The input 'image' has shape 2x4x3; the engine wants -1x3x4 (-1 = any length).",
            "Reshape",
        ),
        (
            {"size": np.zeros((), np.int64)},
            "The input 'size' has shape scalar; the engine wants -1 (-1 = any length).",
            "Reshape",
        ),
        (
            inputs(9, 9),
            "The input 'image' has shape 9x3x4; the engine was built for 1x3x4 to 8x3x4.",
            "Split the request",
        ),
        (
            inputs(2, 3),
            "The inputs' rows (lengths along axis 0) are: image 2, size 3.",
            "the same number of rows",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_what_was_wanted(
    changes: dict[str, np.ndarray | None], message: str, hint: str
) -> None:
    sent = {name: tensor for name, tensor in {**inputs(), **changes}.items() if tensor is not None}

    with pytest.raises(TensorRejected) as caught:
        check_inputs(sent, BY_ROW)

    assert caught.value.detail == message
    assert hint in caught.value.hint


def test_a_batch_without_rows_is_refused() -> None:
    free = Signature((IMAGE,), (SCORES,), rows_max=8)

    with pytest.raises(TensorRejected, match="image 0"):
        check_inputs({"image": np.zeros((0, 3, 4), np.float32)}, free)


def test_where_axis_0_is_no_batch_axis_inputs_may_differ_in_length_and_be_empty() -> None:
    check_inputs(inputs(1, 5), AS_ONE)
    check_inputs(inputs(0, 0), AS_ONE)


@given(st.lists(st.integers(0, 9), max_size=4), st.lists(st.sampled_from([ANY, 0, 1, 5]), max_size=4))
def test_a_shape_fits_when_its_rank_and_every_fixed_length_agree(shape: list[int], wanted: list[int]) -> None:
    spec = TensorSpec("x", DType.FLOAT32, tuple(wanted))

    agrees = len(shape) == len(wanted) and not any(w >= 0 and w != s for w, s in zip(wanted, shape, strict=False))
    assert spec.fits(tuple(shape)) == agrees


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ((SCORES,), True),
        ((TensorSpec("y", DType.FLOAT16, (ANY, ANY)),), True),
        ((TensorSpec("y", DType.FLOAT32, (ANY, 1)),), False),
        ((TensorSpec("y", DType.INT64, (ANY, 10)),), False),
        ((TensorSpec("y", DType.FLOAT32, (ANY, 10, 2)),), False),
        ((SCORES, SCORES), False),
    ],
)
def test_a_classifier_has_one_floating_output_of_several_classes(
    outputs: tuple[TensorSpec, ...], expected: bool
) -> None:
    assert Signature((IMAGE,), outputs).is_classifier == expected


@pytest.mark.parametrize("dtype", list(DType))
def test_every_element_type_is_numpy_s_of_the_same_name(dtype: DType) -> None:
    assert dtype.numpy.name == dtype.value
    assert dtype.numpy.isnative
    assert dtype.is_float == np.issubdtype(dtype.numpy, np.floating)


def test_shapes_are_written_as_trtexec_writes_them() -> None:
    assert shape_text((1, 3, 224, 224)) == "1x3x224x224"
    assert shape_text(()) == "scalar"
