"""The event loop that waits awake: told by the patience of its selector, so that no clock decides."""

from __future__ import annotations

import asyncio
import http.client
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from app.api.busy_poll import BusyPoll
from app.api.exchange import BODY
from tests.fronts import LONG_S, serving

HOUR_S = 3600.0


class Selector(selectors.DefaultSelector):  # type: ignore[valid-type, misc]  # chosen when it is imported
    """Notes whether it was let sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.slept = 0

    def select(self, timeout: float | None = None) -> Any:
        self.slept += timeout is None or timeout > 0
        return super().select(timeout)


@contextmanager
def loop_over(selector: Selector) -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.SelectorEventLoop(selector)
    try:
        yield loop
    finally:
        loop.close()


def slept(begin: Callable[[BusyPoll, asyncio.AbstractEventLoop], None], limit_s: float) -> bool:
    """Whether the loop slept in the hundredth of a second after the beginning."""
    selector = Selector()
    with loop_over(selector) as loop:
        poll = BusyPoll(limit_s)

        async def wait() -> None:
            begin(poll, loop)
            await asyncio.sleep(0.01)

        loop.run_until_complete(wait())
        poll.end()
    return selector.slept > 0


def test_the_loop_does_not_sleep_while_it_polls():
    assert not slept(lambda poll, loop: poll.begin(loop, loop.time()), HOUR_S)


def test_the_loop_sleeps_again_once_the_limit_has_passed():
    assert slept(lambda poll, loop: poll.begin(loop, loop.time() - HOUR_S), HOUR_S)


def test_the_loop_sleeps_again_once_that_has_come_which_was_waited_for():
    def begun_and_ended(poll: BusyPoll, loop: asyncio.AbstractEventLoop) -> None:
        poll.begin(loop, loop.time())
        poll.end()

    assert slept(begun_and_ended, HOUR_S)


def test_a_poll_that_was_ended_and_begun_again_goes_on():
    def begun_twice(poll: BusyPoll, loop: asyncio.AbstractEventLoop) -> None:
        poll.begin(loop, loop.time())
        poll.end()
        poll.begin(loop, loop.time())

    assert not slept(begun_twice, HOUR_S)


@pytest.mark.parametrize(
    ("asked", "waited_s", "limit_s", "expected"),
    [
        ("aa", 0.1, 0.2, True),
        ("aa", 0.3, 0.2, False),  # too slow a client
        ("ab", 0.1, 0.2, False),  # another one asks as well
        ("a", 0.1, 0.2, False),
        ("aba", 0.1, 0.2, False),
        ("abb", 0.1, 0.2, True),
        ("aa", 0.0, 0, False),  # switched off
    ],
)
def test_only_a_lone_client_that_asks_at_once_is_waited_for(asked, waited_s, limit_s, expected):
    poll = BusyPoll(limit_s)

    assert [poll.deserves(one, waited_s) for one in asked][-1] is expected


# --- a server -------------------------------------------------------------------------------------------------------


@contextmanager
def server(busy_poll_s: float) -> Iterator[tuple[int, Selector]]:
    """Its port, and what tells whether it sleeps."""
    selector = Selector()

    def run(served: Coroutine[Any, Any, None]) -> None:
        with loop_over(selector) as loop:
            loop.run_until_complete(served)

    with serving(length, busy_poll_s=busy_poll_s, run=run) as port:
        yield port, selector


async def length(scope: Scope, receive: Receive, send: Send) -> None:
    answer = str(len(await scope[BODY]())).encode()
    if scope["path"].endswith("slow"):
        await asyncio.sleep(0.02)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


def ask(connection: http.client.HTTPConnection, body: bytes = b"x", name: str = "net") -> bytes:
    connection.request("POST", f"/infer/{name}", body)
    return connection.getresponse().read()


def sleeps_after(port: int, selector: Selector, *connections: http.client.HTTPConnection) -> bool:
    """Whether the server sleeps after each connection has asked ten times, one after another."""
    for number in range(10):
        if number == 2:  # whoever is waited for awake is by now
            before = selector.slept
        for connection in connections:
            assert ask(connection) == b"1"
    end_s = time.monotonic() + LONG_S
    while selector.slept == before and time.monotonic() < end_s:
        time.sleep(0.01)
    return selector.slept > before


def test_a_lone_client_is_waited_for_awake_and_its_body_too():
    with server(HOUR_S) as (port, selector):
        lone = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG_S)
        ask(lone), ask(lone)
        before = selector.slept
        for size in (1, 100_000, 1_000_000):
            assert ask(lone, bytes(size)) == str(size).encode()
        assert selector.slept == before
        lone.close()


def test_the_server_sleeps_while_its_engine_works():
    with server(HOUR_S) as (port, selector):
        lone = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG_S)
        ask(lone), ask(lone)
        before = selector.slept
        assert ask(lone, name="slow") == b"1"
        assert selector.slept > before
        lone.close()


def test_two_clients_in_turn_are_waited_for_asleep():
    with server(HOUR_S) as (port, selector):
        two = [http.client.HTTPConnection("127.0.0.1", port, timeout=LONG_S) for _ in range(2)]
        assert sleeps_after(port, selector, *two)
        for one in two:
            one.close()


def test_nobody_is_waited_for_awake_where_it_is_switched_off():
    with server(0) as (port, selector):
        lone = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG_S)
        assert sleeps_after(port, selector, lone)
        lone.close()
