"""Messages between processes: whole, in order, with descriptors, however slow one end is."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from app.replicas.channel import MESSAGE_BYTES_MAX, Channel, pair
from tests.fakes import soon


class End:
    """A channel that keeps what it got."""

    def __init__(self, socket: Any) -> None:
        self.got: list[tuple[Any, list[int]]] = []
        self.lost = asyncio.Event()
        self.arrived = asyncio.Event()
        self.channel = Channel(socket, self._take, self.lost.set)

    async def wait_for(self, count: int) -> None:
        while len(self.got) < count:
            self.arrived.clear()
            await soon(self.arrived.wait())

    def _take(self, message: Any, files: list[int]) -> None:
        self.got.append((message, files))
        self.arrived.set()


async def test_messages_of_any_size_arrive_whole_and_in_order() -> None:
    mine, its = map(End, pair())
    messages = [b"x" * size for size in (0, 1, 100, MESSAGE_BYTES_MAX, 5 << 20, 7)]

    for message in messages:
        mine.channel.send(message)
    await its.wait_for(len(messages))

    assert [message for message, _ in its.got] == messages
    mine.channel.close()
    await soon(its.lost.wait())


async def test_an_end_that_does_not_read_loses_nothing() -> None:
    first, second = pair()
    mine = End(first)
    messages = [(number, b"x" * 10_000) for number in range(200)]

    for message in messages:
        mine.channel.send(message)  # more than the socket holds: it waits here
    its = End(second)
    await its.wait_for(len(messages))

    assert [message for message, _ in its.got] == messages
    mine.channel.close()
    its.channel.close()


async def test_a_descriptor_travels_with_its_message_also_a_large_one() -> None:
    mine, its = map(End, pair())
    for text in (b"small", b"x" * (1 << 20)):
        reader, writer = os.pipe()
        mine.channel.send(text, [writer])
        await its.wait_for(1)
        ((message, (descriptor,)),) = its.got
        its.got.clear()

        os.write(descriptor, b"through")
        os.close(descriptor)
        assert (message, os.read(reader, 100), os.read(reader, 100)) == (text, b"through", b"")  # mine is closed too
        os.close(reader)
    mine.channel.close()
    its.channel.close()


async def test_what_is_sent_to_an_end_that_has_gone_is_dropped_and_its_descriptors_are_closed() -> None:
    mine, its = map(End, pair())
    its.channel.close()
    await soon(mine.lost.wait())
    reader, writer = os.pipe()

    mine.channel.send("late", [writer])

    assert os.read(reader, 1) == b""
    os.close(reader)
