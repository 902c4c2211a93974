"""The nursery as the service's process sees it; here the test answers in its place."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from app.replicas.channel import pair
from app.replicas.messages import Born, End, Fork
from app.replicas.nursery import Nursery
from tests.unit.test_replica_channel import End as Answering


@dataclass(frozen=True)
class Asked:
    """A nursery, and what it is asked."""

    nursery: Nursery
    end: socket.socket


@pytest.fixture
def asked() -> Iterator[Asked]:
    mine, its = pair()
    process = os.posix_spawn("/bin/sleep", ["sleep", "600"], {})
    nursery = Nursery(process, mine, 2)
    yield Asked(nursery, its)
    nursery.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


async def test_a_fork_that_fails_is_tried_again(asked: Asked) -> None:
    answering, born = Answering(asked.end), []
    asked.nursery.start(lambda pid, end: born.append((pid, end.fileno())))
    await answering.wait_for(2)

    answering.channel.send(Born(None, "there is no memory"))
    await answering.wait_for(3)

    assert [message for message, _ in answering.got] == [Fork(), Fork(), Fork()]
    assert born == []
    answering.channel.close()


async def test_what_dies_again_and_again_is_ended_and_replaced_ever_later(asked: Asked) -> None:
    answering = Answering(asked.end)
    asked.nursery.start(lambda pid, end: end.close())

    pauses_s = [asked.nursery.replace(pid, lived_s=0.1) for pid in (11, 12, 13)]
    await answering.wait_for(6)

    assert pauses_s == [0.5, 1, 2]
    ends = [End(11), End(12), End(13)]
    assert [message for message, _ in answering.got] == [Fork(), Fork(), *ends, Fork()]
    answering.channel.close()


async def test_without_a_nursery_nothing_is_replaced(asked: Asked) -> None:
    asked.nursery.start(lambda pid, end: end.close())

    asked.nursery.stop()

    assert asked.nursery.replace(11, lived_s=100) is None
    asked.end.close()
