"""Build options as clients write them."""

from __future__ import annotations

import pytest

from app.api.openapi import JOB_FORM
from app.api.options import OptionsSchema, build_options
from app.domain.builds import Builder, BuildOptions, Int8Method, Precision, Ranging
from app.domain.errors import InvalidOption


def test_what_is_left_out_is_the_default():
    assert build_options({}) == BuildOptions()


def test_form_fields_are_read_as_text():
    fields = {
        "precision": "int8",
        "int8_method": "qdq",
        "int8_ranging": "percentile",
        "dynamic_batch": "true",
        "fold_preprocess": "1",
        "tf32": "yes",
        "opset": "17",
        "workspace_mib": "512",
        "tactic_sources": "cublas, CUDNN",
        "optimization_level": "5",
        "dla_core": "1",
        "builder": "trtexec",
        "tolerance": '{"sqnr_db": 12}',
    }

    assert build_options(fields) == BuildOptions(
        precision=Precision.INT8,
        int8_method=Int8Method.QDQ,
        int8_ranging=Ranging.PERCENTILE,
        dynamic_batch=True,
        fold_preprocess=True,
        tf32=True,
        opset=17,
        workspace_mib=512,
        tactic_sources=("CUBLAS", "CUDNN"),
        optimization_level=5,
        dla_core=1,
        builder=Builder.TRTEXEC,
        tolerance={"sqnr_db": 12},
    )


@pytest.mark.parametrize(("text", "sources"), [("", ()), ("[]", ()), ('["CUBLAS_LT"]', ("CUBLAS_LT",))])
def test_no_tactic_source_at_all_is_told_apart_from_the_default(text, sources):
    assert build_options({"tactic_sources": text}).tactic_sources == sources


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", "int4"),
        ("int8_method", "magic"),
        ("int8_ranging", "mean"),
        ("opset", "8"),
        ("opset", "26"),
        ("workspace_mib", "0"),
        ("tactic_sources", "CUBLAS;rm"),
        ("optimization_level", "6"),
        ("dla_core", "-1"),
        ("builder", "make"),
        ("dynamic_batch", "perhaps"),
        ("tolerance", '{"top1": 2}'),
        ("tolerance", '{"sqnr": 2}'),
        ("preprocess", '{"preset": []}'),
        ("preprocess", '{"preset": {}}'),
        ("input_shapes", {"x": [-1, 4]}),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(InvalidOption, match=name):
        build_options({name: value})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("max_shapes", "8,1,8,8", "max_shapes: lengths are separated by x, as 1x3x224x224, not '8,1,8,8'."),
        ("max_shapes", "a:1,a:2", "max_shapes: the input 'a' appears twice, not 'a:1,a:2'."),
        ("input_shapes", "1x-3", "input_shapes: '1x-3' is not a shape; write name:1x3x224x224."),
        ("precision", "int4", "precision: should be fp32, fp16, int8 or auto, not 'int4'."),
        ("precision", "unknown", "precision: should be fp32, fp16, int8 or auto, not 'unknown'."),
        ("tolerance", "40", """tolerance: should be a JSON object as {"sqnr_db": 40, "top1": 0.99}, not '40'."""),
        ("opset", "99", "opset: Input should be less than or equal to 25, not '99'."),
    ],
)
def test_a_refused_value_is_shown_with_the_form_that_is_wanted(name, value, told):
    with pytest.raises(InvalidOption) as refused:
        build_options({name: value})

    assert (refused.value.detail, refused.value.hint) == (told, f"/docs describes {name}.")


@pytest.mark.parametrize(
    ("fields", "told", "listed"),
    [
        ({"precison": "fp16"}, "There is no option 'precison'; did you mean precision?", "The options are: backend, "),
        ({"colour": "x", "opset": "99"}, "There is no option 'colour'.", "timeout_s; /docs describes them."),
        (
            {"tolerance": '{"sqnr": 2}'},
            "There is no field of tolerance 'sqnr'; did you mean sqnr_db?",
            "The fields of tolerance are: sqnr_db, cosine, ",
        ),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_all_that_there_are(fields, told, listed):
    with pytest.raises(InvalidOption) as refused:
        build_options(fields)

    assert refused.value.detail == told
    assert listed in refused.value.hint


def test_a_precision_is_read_in_any_case():
    assert build_options({"precision": "INT8"}).precision is Precision.INT8


def test_the_form_of_the_api_document_describes_every_option() -> None:
    properties = JOB_FORM["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    options = {name: properties[name] for name in OptionsSchema.model_fields}

    assert [name for name, option in options.items() if len(option.get("description", "")) < 15] == []
    assert options["precision"]["enum"] == ["fp32", "fp16", "int8", "auto"]
    assert (options["simplify"]["type"], options["simplify"]["default"]) == ("boolean", True)
    assert (options["opset"]["type"], options["opset"]["minimum"]) == ("integer", 9)
    assert options["input_shapes"]["type"] == "string"
