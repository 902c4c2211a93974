"""Tensors in the bodies of `/infer`: JSON, npy, npz and bare bytes, and what is refused there."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest

from app.api import infer, tensors
from app.api.body_room import BodyRoom, Holding
from app.api.responses import json_bytes
from app.domain.errors import InvalidRequest, InvalidShape, ServiceError, TensorRejected
from app.domain.tensors import ANY, DType, Shape, Signature, TensorSpec
from tests.fakes import engine_record

MIB = 1 << 20


def signature(dtype: DType = DType.FLOAT32, shape: Shape = (ANY, 4)) -> Signature:
    return Signature((TensorSpec("x", dtype, shape),), ())


def parsed(inputs: Any, dtype: DType = DType.FLOAT32) -> np.ndarray:
    return tensors.from_json(json.dumps({"inputs": inputs}).encode(), signature(dtype))["x"]


def npy(shape: object, data: bytes = b"", fortran_order: bool = False) -> bytes:
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
    return file.getvalue() + data


def test_one_long_text_among_many_takes_no_more_memory_than_it_has() -> None:
    body = json.dumps({"inputs": ["a" * 100_000, *[""] * 2000]}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(TensorRejected, match="not a regular nested list of numbers"):
            tensors.from_json(body, signature())
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB  # numpy would take 763
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "inputs",
    ["text", [["1"]], [[1], 2], [1, [2]], [[1], "ab"], [[], [1]], [[], ["a"]], [None], [{"a": 1}], [[1, None]]],
)
def test_what_is_no_regular_list_of_numbers_is_refused(inputs: Any) -> None:
    with pytest.raises(TensorRejected):
        tensors.from_json(json.dumps({"inputs": [inputs]}).encode(), signature())


@pytest.mark.parametrize("inputs", [5, [], [[]], [[1, 2.5]], [[[True]]], [[[], []]]])
def test_regular_lists_keep_their_shape(inputs: Any) -> None:
    tensor = parsed(inputs)

    assert tensor.shape == np.shape(inputs)
    np.testing.assert_array_equal(tensor, np.array(inputs, np.float32))


@pytest.mark.parametrize("value", [2**63, 2**64, -(2**63) - 1, 1e300])
def test_whole_numbers_that_are_too_large_are_not_called_fractions(value: float) -> None:
    with pytest.raises(TensorRejected, match="values that int64 cannot hold"):
        parsed([value, 0], DType.INT64)


def test_fractions_for_an_integer_are_called_so() -> None:
    with pytest.raises(TensorRejected, match="holds fractions"):
        parsed([1.5, 2], DType.INT64)


@pytest.mark.parametrize("fortran_order", [False, True])
@pytest.mark.parametrize(
    ("shape", "nbytes"),
    [((-1, -4), 16), ((-2, -2), 16), ((True, 4), 16), ((0, 2**40, 2**40), 0), ((0, 2**70), 0), ((1,) * 70, 4)],
)
def test_a_shape_that_no_array_has_is_refused(shape: tuple[int, ...], nbytes: int, fortran_order: bool) -> None:
    with pytest.raises(InvalidShape):
        tensors.from_npy(npy(shape, bytes(nbytes), fortran_order))


def test_a_shape_in_the_address_that_no_array_has_is_refused() -> None:
    wanted = tensors.parsed_shape("0x999999999x999999999x999999999")

    with pytest.raises(InvalidShape):
        tensors.from_raw(b"", signature(), wanted)


def test_a_scalar_stays_one_both_ways() -> None:
    file = io.BytesIO()
    np.save(file, np.float32(5))

    assert tensors.from_npy(file.getvalue()).shape == ()
    assert json.loads(json_bytes(tensors.to_json({"y": np.array(0.1, np.float32)}))) == {
        "y": {"shape": [], "dtype": "float32", "data": 0.1}
    }


def test_no_damage_to_an_npz_is_a_defect_of_the_service() -> None:
    random = np.random.default_rng(0)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", npy((64, 4), random.standard_normal((64, 4)).astype(np.float32).tobytes()))
    whole = file.getvalue()

    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        with Holding(BodyRoom(16 * MIB)) as holding:
            try:
                tensors.from_npz(bytes(damaged), MIB, holding)
            except ServiceError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize(("side", "is_fast"), [(64, True), (512, False)])
def test_an_image_whose_answer_is_long_in_json_does_not_hold_up_the_event_loop(side: int, is_fast: bool) -> None:
    record = engine_record(
        signature=Signature((), (TensorSpec("mask", DType.FLOAT32, (ANY, 1, side, side)),), rows_max=8)
    )
    steps = infer.Steps(infer.asked("net", "image/png", {}), lambda _: True)

    assert (steps.form(memoryview(b""), record) is not None) == is_fast


def test_a_time_limit_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="X-Timeout-Ms"):
        infer.asked("net", "image/png", {"x-timeout-ms": "soon"})
