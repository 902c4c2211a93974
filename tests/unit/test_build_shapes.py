from __future__ import annotations

import pytest

from app.build.graph import Source
from app.build.shapes import candidates, requested_ranges, run_shapes
from app.domain.builds import BuildOptions
from app.domain.errors import ShapesContradict
from app.domain.tensors import DType, Shape, ShapeRange, TensorSpec

IMAGE = TensorSpec("image", DType.FLOAT32, (-1, 3, -1, -1))
ROWS = TensorSpec("x", DType.FLOAT32, (-1, 4))
FIXED = TensorSpec("fixed", DType.FLOAT32, (1, 4))


def source(*inputs: TensorSpec, symbols: dict[str, tuple[str, ...]] | None = None) -> Source:
    nameless = {spec.name: ("",) * len(spec.shape) for spec in inputs}
    return Source(inputs, (), {**nameless, **(symbols or {})}, 17, 1, 0, False, False, False)


def ranges(*inputs: TensorSpec, **shapes: dict[str, Shape]) -> dict[str, ShapeRange]:
    return requested_ranges(inputs, BuildOptions(**shapes))


def test_without_a_request_nothing_is_limited():
    assert ranges(IMAGE) == {}


@pytest.mark.parametrize("kind", ["input_shapes", "opt_shapes", "min_shapes"])
def test_one_shape_alone_fixes_the_input_at_it(kind):
    shape = (2, 3, 32, 32)
    assert ranges(IMAGE, **{kind: {"image": shape}}) == {"image": ShapeRange(shape, shape, shape)}


def test_the_largest_shape_alone_allows_every_batch_up_to_it():
    assert ranges(IMAGE, max_shapes={"": (8, 3, 32, 32)}) == {
        "image": ShapeRange((1, 3, 32, 32), (8, 3, 32, 32), (8, 3, 32, 32))
    }


def test_a_full_range_is_taken_as_it_is():
    assert ranges(ROWS, min_shapes={"x": (2, 4)}, opt_shapes={"x": (4, 4)}, max_shapes={"x": (8, 4)}) == {
        "x": ShapeRange((2, 4), (4, 4), (8, 4))
    }


def test_the_name_may_be_left_out_for_the_only_input():
    assert ranges(ROWS, input_shapes={"": (2, 4)}) == ranges(ROWS, input_shapes={"x": (2, 4)})


def test_asking_a_fixed_input_for_its_own_shape_limits_nothing():
    assert ranges(FIXED, input_shapes={"fixed": (1, 4)}) == {}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"input_shapes": {"nobody": (1, 4)}}, "'nobody'.*x float32 -1x4"),
        ({"input_shapes": {"": (1, 4), "x": (1, 4)}}, "'x'"),
        ({"input_shapes": {"x": (1, 4, 1)}}, "1x4x1.*-1x4"),
        ({"max_shapes": {"x": (8, 5)}}, "max_shapes asks 8x5.*-1x4"),
        ({"opt_shapes": {"x": (-1, 4)}}, "-1x4"),
        ({"min_shapes": {"x": (4, 4)}, "max_shapes": {"x": (2, 4)}}, "min 4x4, opt 2x4 and max 2x4"),
        ({"opt_shapes": {"x": (9, 4)}, "max_shapes": {"x": (8, 4)}}, "opt 9x4 and max 8x4"),
        ({"opt_shapes": {"x": (2, 4)}, "input_shapes": {"x": (3, 4)}}, "3x4.*opt_shapes 2x4"),
    ],
)
def test_a_contradiction_is_told_with_its_numbers(shapes, words):
    with pytest.raises(ShapesContradict, match=words):
        ranges(ROWS, **shapes)


def test_the_name_must_be_given_when_there_are_two_inputs():
    with pytest.raises(ShapesContradict, match="no input"):
        ranges(ROWS, IMAGE, input_shapes={"": (1, 4)})


def test_a_fixed_axis_cannot_be_asked_to_be_another():
    with pytest.raises(ShapesContradict, match=r"2x4.*1x4"):
        ranges(FIXED, input_shapes={"fixed": (2, 4)})


def test_a_batch_axis_alone_leaves_one_candidate_of_one_row():
    assert list(candidates(source(ROWS), {})) == [{"x": (1, 4)}]


def test_open_heights_and_widths_are_tried_as_squares_that_networks_have():
    tried = [shapes["image"] for shapes in candidates(source(IMAGE), {})]
    assert tried[0] == (1, 3, 224, 224) and (1, 3, 64, 64) in tried and len(tried) == 5


def test_the_middle_axes_are_the_sides_when_channels_come_last():
    spec = TensorSpec("image", DType.UINT8, (1, -1, -1, 3))
    assert next(candidates(source(spec), {})) == {"image": (1, 224, 224, 3)}


def test_axes_of_one_name_have_one_length():
    ids, mask = TensorSpec("ids", DType.INT64, (-1, -1)), TensorSpec("mask", DType.INT64, (-1, -1))
    named = source(ids, mask, symbols={"ids": ("batch", "length"), "mask": ("batch", "length")})
    pinned = {"ids": ShapeRange((1, 7), (2, 7), (4, 7))}

    assert list(candidates(named, pinned)) == [{"ids": (2, 7), "mask": (2, 7)}]


def test_every_axis_named_like_the_batch_follows_the_number_of_rows():
    x, state = TensorSpec("x", DType.FLOAT32, (-1, 4)), TensorSpec("state", DType.FLOAT32, (2, -1, 4))
    named = source(x, state, symbols={"x": ("batch", ""), "state": ("", "batch", "")})

    shapes = run_shapes(named, {}, next(candidates(named, {})))

    assert shapes.with_rows(3) == {"x": (3, 4), "state": (2, 3, 4)}


def test_the_rows_admitted_are_those_of_every_range():
    limits = {"x": ShapeRange((2, 4), (4, 4), (6, 4))}
    shapes = run_shapes(source(ROWS), limits, {"x": (4, 4)})

    assert [rows for rows in range(9) if shapes.admits(rows)] == [2, 3, 4, 5, 6]
    assert shapes.rows == 4
