from __future__ import annotations

import pytest

from app.build.preprocessing import refuse_labels, resolved_preprocess
from app.domain.errors import LabelsContradict, PreprocessContradicts
from app.domain.preprocess import Color, Layout, Resize
from app.domain.tensors import DType, Shape, ShapeRange, Signature, TensorSpec

LOGITS = TensorSpec("logits", DType.FLOAT32, (-1, 3))


def signature(*shapes: Shape, dtype: DType = DType.FLOAT32, limits: ShapeRange | None = None) -> Signature:
    inputs = tuple(TensorSpec(f"x{index}", dtype, shape) for index, shape in enumerate(shapes))
    return Signature(inputs, (LOGITS,), {"x0": limits} if limits else {})


IMAGE = signature((-1, 3, 8, 6))


def test_an_image_input_suggests_its_own_recipe():
    recipe = resolved_preprocess(IMAGE, None)

    assert recipe is not None
    assert (recipe.input, recipe.width, recipe.height, recipe.layout) == ("x0", 6, 8, Layout.NCHW)


@pytest.mark.parametrize("shapes", [[(-1, 4)], [(-1, 3, -1, -1)], [(-1, 3, 8, 8), (1,)], []])
def test_without_a_request_other_inputs_take_tensors_only(shapes):
    assert resolved_preprocess(signature(*shapes), None) is None


def test_the_request_overrides_single_fields():
    recipe = resolved_preprocess(IMAGE, {"resize": "center_crop", "color": "bgr", "mean": [1, 2, 3], "std": [4.5]})

    assert recipe is not None
    assert recipe.resize is Resize.CENTER_CROP and recipe.color is Color.BGR
    assert recipe.mean == (1, 2, 3) and recipe.std == (4.5,)
    assert recipe.width == 6


def test_an_open_height_and_width_are_taken_from_the_request():
    recipe = resolved_preprocess(signature((-1, 3, -1, -1)), {"width": 20, "height": 10})

    assert recipe is not None
    assert recipe.row_shape == (3, 10, 20)


def test_the_shape_asked_for_closes_an_open_height_and_width():
    shape = (1, 3, 32, 48)
    recipe = resolved_preprocess(signature((-1, 3, -1, -1), limits=ShapeRange(shape, shape, shape)), None)

    assert recipe is not None
    assert recipe.row_shape == (3, 32, 48)


def test_channels_last_and_bytes_are_recognised():
    recipe = resolved_preprocess(signature((1, 8, 6, 1), dtype=DType.UINT8), {"pad": 0})

    assert recipe is not None
    assert (recipe.layout, recipe.color, recipe.scale, recipe.dtype) == (Layout.NHWC, Color.GRAY, 1.0, DType.UINT8)


@pytest.mark.parametrize(
    ("requested", "words"),
    [
        ({"width": 7}, "3x8x7.*-1x3x8x6"),
        ({"color": "gray"}, "1x8x6.*-1x3x8x6"),
        ({"layout": "nhwc"}, "-1x3x8x6"),
        ({"dtype": "uint8"}, "uint8.*float32"),
        ({"input": "other"}, "'other'.*'x0'"),
        ({"colour": "rgb"}, "unknown fields: colour"),
        ({"resize": "zoom"}, "resize"),
        ({"mean": "grey"}, "mean"),
        ({"mean": [1, 2]}, "mean has 2 values"),
        ({"std": [0]}, "std"),
        ({"width": None}, "width"),
        ({"width": {1}}, "set"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_with_what_was_found(requested, words):
    with pytest.raises(PreprocessContradicts, match=words):
        resolved_preprocess(IMAGE, requested)


def test_an_open_size_that_nobody_gives_is_refused():
    with pytest.raises(PreprocessContradicts) as caught:
        resolved_preprocess(signature((-1, 3, -1, -1)), {"color": "bgr"})

    assert '"width": 224, "height": 224' in caught.value.hint


def test_a_size_outside_the_shapes_asked_for_is_refused():
    limits = ShapeRange((1, 3, 16, 16), (1, 3, 32, 32), (1, 3, 64, 64))
    with pytest.raises(PreprocessContradicts, match=r"3x128x128.*1x3x64x64"):
        resolved_preprocess(signature((-1, 3, -1, -1), limits=limits), {"width": 128, "height": 128})


@pytest.mark.parametrize("shapes", [[(-1, 4)], [(-1, 3, 8, 8), (1,)], [()]])
def test_a_recipe_for_an_input_that_is_no_image_is_refused(shapes):
    with pytest.raises(PreprocessContradicts):
        resolved_preprocess(signature(*shapes), {"color": "rgb"})


def test_labels_must_be_as_many_as_the_classes():
    refuse_labels(("a", "b", "c"), IMAGE, classes=3)
    refuse_labels((), IMAGE, classes=3)
    with pytest.raises(LabelsContradict, match=r"2 labels.*3 classes"):
        refuse_labels(("a", "b"), IMAGE, classes=3)


def test_only_a_classifier_has_labels():
    other = Signature(IMAGE.inputs, (LOGITS, LOGITS))
    with pytest.raises(LabelsContradict, match="logits float32 -1x3"):
        refuse_labels(("a", "b", "c"), other, classes=3)
