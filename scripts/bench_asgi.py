"""The bare ASGI echo, and the service's own application, under uvicorn or granian: bench_asgi.py APP SERVER.

Prints the port that it has taken, then serves until it is ended. The echo takes the whole body and answers as many
bytes as an engine of 1,000 classes does. granian is not among the service's dependencies: PYTHONPATH must lead to it.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any

ANSWER = bytes(4 * 1000 + 150)  # a thousand float32 and the header of the protocol
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
_HEADERS = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(ANSWER)).encode())]
_open = ExitStack()  # what the service's application works with, until the process ends


async def echo(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Take the body in one piece, as every server of tensors must, and answer."""
    if scope["type"] != "http":
        return
    pieces = []
    more = True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    b"".join(pieces)
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


def service() -> Any:
    """The service's application over the data folder of the environment; it must have been prepared."""
    from app import wiring
    from app.api.app import create_app
    from app.settings import Settings

    return create_app(_open.enter_context(wiring.connected_services(Settings())))


def main(app: str, server: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    print(port, flush=True)
    if server == "granian":
        made = import_module("granian").Granian(
            f"bench_asgi:{app}",
            address="127.0.0.1",
            port=port,
            interface="asgi" if app == "service" else "asginl",  # the echo knows no lifespan
            loop="uvloop",
            factory=app == "service",
            log_access=False,
        )
        made.serve()
        return
    import uvicorn

    lifespan: Any = "on" if app == "service" else "off"
    target: Any = service() if app == "service" else echo
    uvicorn.run(
        target,
        port=port,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        lifespan=lifespan,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
