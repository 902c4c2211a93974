"""Returned: what a replica's connection gives everything to that the fast path does not answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from uvicorn.protocols.utils import get_remote_addr

from app.api.connection import Connection
from app.api.exchange import Exchange
from app.domain.errors import ServiceError

if TYPE_CHECKING:
    from app.replicas.process import Replica


class Returned:
    """Stands where uvicorn stands in the service's process: all that it is given goes back there."""

    scheme: Literal["http", "https"] | None = "http"  # nothing else comes here
    server: tuple[str, int | None] | None = None
    is_at_rest = True  # what it is given is given on at once
    is_idle = True

    def __init__(self, replica: Replica) -> None:
        self.connection: Connection
        self.client: tuple[str, int] | None = None
        self.app_state: dict[str, Any] = {}
        self.is_leaving = False
        self.is_returned = False
        self._replica = replica

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.client = get_remote_addr(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._replica.lost(self)

    def data_received(self, data: bytes) -> None:
        self.connection.keep(data)
        self._replica.hand_back(self)

    def takes_long_way(self, exchange: Exchange) -> bool:
        self._replica.background.start(self._replica.retry(self, exchange))
        return True

    def shutdown(self) -> None:
        self.connection.transport.close()

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass

    def rest(self) -> None:
        pass

    def forget_keep_alive(self) -> None:
        pass

    def end_if_late(self, now_s: float) -> None:
        pass

    def refuse(self, error: ServiceError) -> None:
        self.connection.transport.close()

    def refuse_slow_body(self) -> None:
        self.connection.transport.close()
