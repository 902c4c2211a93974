"""Bodies of the Open Inference Protocol: put together, inflated, deflated."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api import v2_body
from app.api.body_room import BodyRoom, Holding
from app.domain.errors import BodiesFull, BodyTooLarge, FeatureUnsupported, InvalidRequest
from tests.unit.v2_requests import X

LIMIT = 1 << 20
LATE = gzip.compress(b"x").ljust(v2_body.PACKED_BYTES) + b"y"


def inflated(packed: bytes, coding: str, limit_bytes: int = LIMIT) -> bytes:
    with Holding(BodyRoom(limit_bytes)) as holding:
        data = bytes(v2_body.inflated(memoryview(packed), coding, limit_bytes, holding))
        assert holding.held_bytes == len(data)
    return data


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body_comes_back_as_it_was(coding: str) -> None:
    data = X.tobytes() * 99
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}[coding](data)

    assert inflated(packed, coding) == data
    assert inflated(v2_body.deflated(data, coding), coding) == data


def test_a_body_of_several_pieces_comes_back_as_it_was() -> None:
    noise = np.random.default_rng(3).bytes(3 * v2_body.PACKED_BYTES)
    data = noise + bytes(3 * v2_body.INFLATED_BYTES) + noise

    assert inflated(gzip.compress(data, 1), "gzip", 8 << 20) == data


def test_a_compressed_body_takes_no_more_room_than_there_is() -> None:
    room = BodyRoom(4 << 20)
    room.take(1 << 20)  # another request's
    bomb = memoryview(gzip.compress(bytes(64 << 20)))

    with pytest.raises(BodiesFull), Holding(room) as holding:
        v2_body.inflated(bomb, "gzip", 1 << 30, holding)

    assert room.held_bytes == 1 << 20


def test_a_bomb_is_refused_before_it_unfolds() -> None:
    bomb = gzip.compress(bytes(64 << 20))

    with pytest.raises(BodyTooLarge):
        inflated(bomb, "gzip")


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"hello",
        gzip.compress(b"x")[:-1],
        gzip.compress(b"x") + b"y",
        gzip.compress(b"x") * 2,
        LATE,
        zlib.compress(b"x"),
    ],
    ids=["empty", "text", "truncated", "left over", "twice", "left over a piece later", "zlib"],
)
def test_a_damaged_compressed_body_is_refused(packed: bytes) -> None:
    with pytest.raises(InvalidRequest):
        inflated(packed, "gzip")


def test_another_coding_is_said_to_be_unsupported() -> None:
    with pytest.raises(FeatureUnsupported):
        inflated(b"x", "br")


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
