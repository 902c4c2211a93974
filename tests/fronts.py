"""A server with the front of the service and an application of the test's own."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Scope

from app.api.body_room import BodyRoom
from app.api.front import Front
from app.api.heads import Head, Plan
from app.connections import ConnectionLimits

LONG_S = 30


@contextmanager
def serving(
    application: ASGIApp,
    *,
    busy_poll_s: float = 0,
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
) -> Iterator[int]:
    """Its port; `run` has the thread's event loop."""
    listener = socket.create_server(("127.0.0.1", 0))
    front: Any = Front(_planner, ConnectionLimits(LONG_S, LONG_S, 1 << 15, busy_poll_s=busy_poll_s), BodyRoom(math.inf))
    config = uvicorn.Config(application, http=front, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: run(server.serve([listener])))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        front.busy_poll.end()
        thread.join(LONG_S)
    assert not thread.is_alive()


def _planner(head: Head) -> Plan:
    async def unused(scope: Scope) -> Any: ...

    return Plan(head, "net", 0, lambda: True, unused)
