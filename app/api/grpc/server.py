"""The gRPC server, on the event loop of the web server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from app.api.body_room import Holding
from app.api.grpc.entry import Entry
from app.api.grpc.messages import parsed
from app.api.grpc.service import InferenceApi, Method
from app.api.grpc.statuses import status_of
from app.api.grpc.streams import METHOD, Streams
from app.api.services import Services
from app.domain.errors import ServiceError, StartRefused

SERVICE = "inference.GRPCInferenceService"
MESSAGE_BYTES_MAX = (1 << 31) - 1  # of protobuf
_KEEPALIVE_MS = 60_000  # a peer that vanished without a word is noticed, and its streams end
_PING_MS_MIN = 10_000  # clients may ask for signs of life as often as this

Handler = Callable[[bytes, Any], Awaitable[bytes]]


class GrpcServer:
    """Speaks the Open Inference Protocol over gRPC at one address."""

    def __init__(
        self, services: Services, host: str, port: int, certificate: tuple[bytes, bytes] | None = None
    ) -> None:
        """
        Args:
            host: a numeric address.
            port: 0 takes a free one.
            certificate: private key and certificate with its chain, as PEM; None: without TLS.
        """
        self._limit_bytes = min(services.settings.max_body_mib << 20, MESSAGE_BYTES_MAX)
        self._bodies = services.bodies
        self._api = InferenceApi(services)
        self._entry = Entry(services.door, services.audit)
        self._host, self._port = host, port
        self._certificate = certificate
        self._server: Any = None
        self._streams = Streams(self._api, self._limit_bytes, services.bodies)
        self._calls: set[asyncio.Task[Any]] = set()  # of grpc's own: they end when the answer is sent

    async def start(self) -> str:
        """Accept requests from now on; the address.

        Raises:
            StartRefused: the address is taken, or not one of this machine's.
        """
        host = f"[{self._host}]" if ":" in self._host else self._host
        address = f"{host}:{self._port}"
        self._server = grpc.aio.server(options=_options(self._limit_bytes))
        self._server.add_generic_rpc_handlers((self._handlers(),))
        try:
            if self._certificate is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, grpc.ssl_server_credentials([self._certificate]))
        except RuntimeError as error:
            raise StartRefused(
                f"Cannot listen for gRPC on {address}.",
                hint="Choose another JETFORGE_GRPC_PORT, or stop what uses it.",
            ) from error
        await self._server.start()
        return f"{host}:{port}"

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, let those under way end, and cancel what is left after the grace."""
        if self._server is None:
            return
        stopping = asyncio.ensure_future(self._server.stop(grace_s))
        self._streams.close()
        if self._calls:
            await asyncio.wait(self._calls, timeout=grace_s)
        # Idle connections are not waited for: clients read the farewell seconds later, at their next look.
        await self._server.stop(None)
        await stopping

    def _handlers(self) -> grpc.GenericRpcHandler:
        # Without grpc's (de)serialisers: to them a message that is none is a fault of the server, with a traceback.
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(name, kind, method))
            for name, (kind, method) in self._api.methods.items()
        }
        handlers[METHOD] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _unary(self, name: str, kind: Any, method: Method) -> Handler:
        """The method, from bytes to bytes, its failures answered as statuses."""

        async def answer(data: bytes, context: Any) -> bytes:
            self._count_call()
            try:
                return await self._answered(name, kind, method, data, context)
            except Exception as error:
                await _abort(context, error, name)
                raise

        return answer

    async def _answered(self, name: str, kind: Any, method: Method, data: bytes, context: Any) -> bytes:
        visitor = self._entry.admitted(name, context)
        self._entry.check_size(visitor, len(data))
        is_done = False
        try:
            with Holding(self._bodies) as holding:
                message = await parsed(kind, data, self._limit_bytes, holding)
                encoded: bytes = (await method(message)).SerializeToString()
            is_done = True
        finally:
            await self._entry.note(name, visitor, context, is_done=is_done)
        return encoded

    async def _stream(self, _: Any, context: Any) -> None:
        self._count_call()
        try:
            self._entry.admitted(METHOD, context)  # once, when it opens
        except ServiceError as error:
            await _abort(context, error, METHOD)
            raise
        await self._streams.serve(context)

    def _count_call(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)


async def _abort(context: Any, error: Exception, name: str) -> None:
    status = status_of(error, name)
    await context.abort(status.code, status.message, status.metadata)


def _options(limit_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limit_bytes),
        ("grpc.per_message_decompression", 0),  # grpc inflates without a limit
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # or a second service on the same port would quietly take half of the requests
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_MS_MIN),
    ]
