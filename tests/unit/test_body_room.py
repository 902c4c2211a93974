"""Room for the bodies of requests under way: taken, refused, given back."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.api.body_room import BodyRoom, HeldBodies, Holding
from app.api.exchange import BODY
from app.domain.errors import BodiesFull

LIMIT = 100
PIECES = (b"x" * 30, b"y" * 40)


def test_bodies_are_taken_until_the_room_is_full() -> None:
    room = BodyRoom(LIMIT)
    room.take(60)
    room.take(40)

    with pytest.raises(BodiesFull, match="other requests hold 0 MiB"):
        room.take(1)
    room.give_back(40)
    room.take(1)

    assert room.held_bytes == 61


def test_a_body_that_is_there_alone_is_taken_whatever_its_size() -> None:
    room = BodyRoom(LIMIT)
    with Holding(room) as holding:
        holding.take(LIMIT)
        holding.take(LIMIT)
        with pytest.raises(BodiesFull):
            room.take(1)
    assert room.held_bytes == 0


def test_what_a_failed_request_held_is_given_back() -> None:
    room = BodyRoom(LIMIT)
    room.take(50)

    with pytest.raises(BodiesFull), Holding(room) as holding:
        holding.take(30)
        holding.take(30)

    assert room.held_bytes == 50


def test_a_thread_that_goes_on_for_a_request_that_has_ended_takes_nothing() -> None:
    room = BodyRoom(LIMIT)
    with Holding(room) as holding:
        holding.take(30)

    with pytest.raises(BodiesFull):
        holding.take(30)

    assert room.held_bytes == 0


async def passed(room: BodyRoom, scope: dict[str, Any]) -> list[int]:
    """What the room held after each piece of a body that an application received through the middleware."""
    pieces = iter(PIECES)
    held = []

    async def receive() -> Message:
        return {"type": "http.request", "body": next(pieces), "more_body": True}

    async def send(message: Message) -> None: ...

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in PIECES:
            await receive()
            held.append(room.held_bytes)

    await HeldBodies(application, room)({"type": "http", **scope}, receive, send)
    return held


async def test_an_inference_body_takes_room_as_it_comes_and_leaves_it_at_the_end() -> None:
    room = BodyRoom(LIMIT)
    assert await passed(room, {"path": "/v2/models/net/infer"}) == [30, 70]
    assert room.held_bytes == 0

    room.take(50)
    with pytest.raises(BodiesFull):
        await passed(room, {"path": "/infer/net"})
    assert room.held_bytes == 50


@pytest.mark.parametrize("scope", [{"path": "/jobs"}, {"path": "/infer/net", BODY: None}], ids=["upload", "in place"])
async def test_uploads_and_bodies_that_have_their_room_take_none(scope: dict[str, Any]) -> None:
    assert await passed(BodyRoom(LIMIT), scope) == [0, 0]
