"""Bodies of the Open Inference Protocol: put together, inflated, deflated."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api import v2_body
from app.domain.errors import BodyTooLarge, FeatureUnsupported, InvalidRequest
from tests.unit.v2_requests import X

LIMIT = 1 << 20


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
