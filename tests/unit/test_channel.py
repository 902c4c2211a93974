"""Frames between a build and a confined child: what is sent arrives, and nothing that is no frame does harm."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest

from app.build.channel import Channel, ChannelBroken, ChannelTimedOut


@pytest.fixture
def channel() -> Iterator[Channel]:
    """A channel that speaks with itself."""
    channel = Channel(*os.pipe())
    yield channel
    channel.close()


def put(channel: Channel, text: bytes, content: bytes = b"", announced: int | None = None) -> None:
    header = struct.pack("<IQ", len(text), len(content) if announced is None else announced)
    os.write(channel._write, header + text + content)


def soon() -> float:
    return time.monotonic() + 5


def test_messages_and_tensors_of_every_shape_arrive_as_sent(channel):
    tensors = {
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 3), np.int64),
        "strided": np.arange(12, dtype=np.float16).reshape(3, 4).T,
        "flags": np.array([True, False]),
    }

    channel.send({"task": "run"}, tensors)
    message, arrived = channel.receive(soon())

    assert message == {"task": "run"}
    assert list(arrived) == list(tensors)
    for name, tensor in tensors.items():
        assert arrived[name].dtype == tensor.dtype
        np.testing.assert_array_equal(arrived[name], tensor)


def test_a_silent_other_side_is_not_waited_for_beyond_the_deadline(channel):
    with pytest.raises(ChannelTimedOut):
        channel.receive(time.monotonic() + 0.05)


def test_an_other_side_that_has_gone_is_told():
    read, write = os.pipe()
    os.close(write)
    channel = Channel(read, -1)

    with pytest.raises(ChannelBroken):
        channel.receive(soon())

    channel.close()


@pytest.mark.parametrize(
    "text",
    [
        b"not JSON",
        b"[]",
        b"{}",
        b'{"tensors": 3}',
        b'{"tensors": [["x", "object", [1]]]}',
        b'{"tensors": [["x", "float32", [-1]]]}',
        b'{"tensors": [["x", "float32", [4]]]}',
        b'{"tensors": [["x", "float32", ["1"]]]}',
        b'{"tensors": [[["x"], "float32", []]]}',
        b"[" * 100_000,
        json.dumps({"tensors": [["x", "float32", [1] * 40]]}).encode(),
    ],
)
def test_what_is_no_message_is_refused(text, channel):
    put(channel, text[:60_000], b"\0" * 4)

    with pytest.raises(ChannelBroken):
        channel.receive(soon())


def test_a_message_that_announces_more_than_any_needs_is_refused_unread(channel):
    put(channel, b"{}", announced=1 << 50)

    with pytest.raises(ChannelBroken, match="too large"):
        channel.receive(soon())
