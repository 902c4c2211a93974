"""`jetforge serve`: the web server, and the worker process that it watches."""

from __future__ import annotations

import logging
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app import logs, wiring
from app.api.app import create_app
from app.domain.errors import StartRefused
from app.guard import guarded
from app.settings import Settings
from app.supervisor import Supervisor

log = logging.getLogger(__name__)

GRACE_S = 5  # for requests under way when the service is asked to stop


class Server(uvicorn.Server):
    """uvicorn's server; a stop ends event streams and long polls first, which would hold it up otherwise."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        app = self.config.app
        assert isinstance(app, FastAPI)
        app.state.changes.close()
        super().handle_exit(sig, frame)


def serve(settings: Settings, *, with_worker: bool) -> int:
    """Serve until SIGTERM or SIGINT."""
    listener = bound(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    supervisor = Supervisor(["--data-dir", str(settings.root)]) if with_worker else None
    with wiring.connected_services(settings) as services:
        config = uvicorn.Config(
            create_app(services),
            log_config=logs.config(settings.log_level),
            access_log=False,
            http=guarded(settings),
            timeout_graceful_shutdown=GRACE_S,
            server_header=False,
        )
        if supervisor is not None:
            supervisor.start()
        log.info("listening", extra={"address": f"http://{f'[{host}]' if ':' in host else host}:{port}"})
        # uvicorn raises the signal again once it has stopped; without a handler that would end this process at once
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            Server(config).run(sockets=[listener])
        finally:
            if supervisor is not None:
                supervisor.stop()
    return 0


def bound(host: str, port: int) -> socket.socket:
    """A listening address, taken before anything else is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartRefused(
            f"Cannot listen on {host}:{port}: {error.strerror}.", hint="Choose another --port, or stop what uses it."
        ) from error
    return listener
