"""`jetforge serve`: the web server, and the worker process that it watches."""

from __future__ import annotations

import logging
import signal
import socket
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from app import heap, logs, wiring
from app.api import headers
from app.api.app import create_app
from app.api.fast_path import FastPath
from app.api.front import Front
from app.api.services import Services
from app.api.shortcut import planned
from app.connections import limits_of
from app.dashboard import pages
from app.domain.errors import StartRefused
from app.replicas.nursery import forked
from app.replicas.team import Team
from app.settings import Settings
from app.supervisor import Supervisor
from app.tls import certificate_files, certificate_pem

if TYPE_CHECKING:
    from app.api.grpc.server import GrpcServer

log = logging.getLogger(__name__)

GRACE_S = 5  # for requests under way when the service is asked to stop


class Server(uvicorn.Server):
    """uvicorn's server, and the gRPC server on its event loop.

    A stop ends event streams and long polls first, which would hold it up otherwise.
    """

    def __init__(self, config: uvicorn.Config, team: Team, grpc: GrpcServer | None) -> None:
        super().__init__(config)
        self._team = team
        self._grpc = grpc

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._team.start(self.config.http)  # type: ignore[arg-type]  # a Front
        if self._grpc is None:
            await super().startup(sockets)
            return
        log.info("listening for gRPC", extra={"address": await self._grpc.start()})
        try:
            await super().startup(sockets)
        finally:
            if self.should_exit or not self.started:  # then uvicorn need not call shutdown,
                await self._grpc.stop(0)  # and a gRPC server that is left running keeps the process from ending

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._grpc is not None:
            await self._grpc.stop(GRACE_S)  # first: the other's end closes the engines
        await self._team.stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        app = self.config.app
        assert isinstance(app, FastAPI)
        app.state.changes.close()
        app.state.services.inspections.stop()
        super().handle_exit(sig, frame)


def serve(settings: Settings, *, with_worker: bool) -> int:
    """Serve until SIGTERM or SIGINT."""
    certificate = certificate_files(settings)
    heap.prepare()
    listener = bound(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    nursery = forked(settings, listener)
    supervisor = Supervisor(["--data-dir", str(settings.root)]) if with_worker else None
    with wiring.connected_services(settings) as services:
        grpc = _grpc_server(services, host)
        app = create_app(services)
        pages.install(app)
        # A request that is to be written to the log has all the middlewares see it.
        fast_path = None if settings.log_requests else FastPath(services.inference, services.door, app.state.requests)
        team = Team(nursery, services.inference, app.state.requests)
        config = uvicorn.Config(
            app,
            log_config=logs.config(settings.log_level, settings.log_format),
            access_log=False,
            timeout_graceful_shutdown=GRACE_S,
            server_header=False,
            http=Front(partial(planned, services, fast_path), limits_of(settings), services.bodies, team),  # type: ignore[arg-type]  # a factory
            headers=headers.ALWAYS,
            proxy_headers=bool(settings.trusted_proxies),  # else a client could claim any address
            forwarded_allow_ips=settings.trusted_proxies or None,
            **certificate,  # type: ignore[arg-type]
        )
        if supervisor is not None:
            supervisor.start()
        scheme = "https" if certificate else "http"
        log.info("listening", extra={"address": f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"})
        # uvicorn raises the signal again once it has stopped; without a handler that would end this process at once
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            Server(config, team, grpc).run(sockets=[listener])
        finally:
            if supervisor is not None:
                supervisor.stop()
    return 0


def _grpc_server(services: Services, host: str) -> GrpcServer | None:
    """The gRPC server, if one is asked for, at the web server's address.

    Raises:
        StartRefused: what it needs is not installed.
    """
    port = services.settings.grpc_port
    if port is None:
        return None
    try:
        from app.api.grpc.server import GrpcServer  # an extra, and 11 MiB that only its users should pay
    except ModuleNotFoundError as error:
        raise StartRefused(
            f"A gRPC port is set ({port}), but {error.name} is not installed.",
            hint="Install the extra: pip install 'jetforge[grpc]'. Or leave JETFORGE_GRPC_PORT and --grpc-port out.",
        ) from error
    return GrpcServer(services, host, port, certificate_pem(services.settings))


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
