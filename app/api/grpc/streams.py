"""ModelStreamInfer: requests of one stream are answered side by side, and in their order."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc

from app.api.body_room import BodyRoom, Holding
from app.api.grpc import codec
from app.api.grpc import open_inference_pb2 as pb
from app.api.grpc.messages import parsed
from app.api.grpc.service import InferenceApi
from app.api.grpc.statuses import status_of
from app.domain.errors import ShuttingDown

METHOD = "ModelStreamInfer"
UNDER_WAY_MAX = 8  # of one stream; more are left in the connection until one is answered


class Streams:
    """Every open stream of the server."""

    def __init__(self, api: InferenceApi, limit_bytes: int, bodies: BodyRoom) -> None:
        """
        Args:
            limit_bytes: of one message, inflated.
            bodies: where all messages find room.
        """
        self._api = api
        self._limit_bytes = limit_bytes
        self._bodies = bodies
        self._readers: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def close(self) -> None:
        """Read no more requests: what was received is answered, then the streams end as unavailable."""
        self._is_closed = True
        for reader in self._readers:
            reader.cancel()

    async def serve(self, context: Any) -> None:
        """Answer one stream until its client closes it, it breaks, or the server stops."""
        turns: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        room = asyncio.Semaphore(UNDER_WAY_MAX)
        reader = asyncio.create_task(self._read(context, turns, room))
        self._readers.add(reader)
        if self._is_closed:
            reader.cancel()
        try:
            while (turn := await turns.get()) is not None:
                answer = await turn
                try:
                    await context.write(answer)
                except grpc.aio.InternalError as error:  # its client left at this moment, of which we are yet to hear
                    raise asyncio.CancelledError from error
                room.release()
            with suppress(asyncio.CancelledError):
                await reader
        finally:
            self._readers.discard(reader)
            reader.cancel()
            while not turns.empty():
                if (turn := turns.get_nowait()) is not None:
                    turn.cancel()
        if self._is_closed:
            status = status_of(ShuttingDown("The service is stopping.", hint="Open a new stream later."), METHOD)
            await context.abort(status.code, status.message, status.metadata)

    async def _read(
        self, context: Any, turns: asyncio.Queue[asyncio.Task[bytes] | None], room: asyncio.Semaphore
    ) -> None:
        try:
            while True:
                await room.acquire()
                message = await context.read()
                if message is grpc.aio.EOF:
                    return
                turns.put_nowait(asyncio.create_task(self._answered(message)))
        finally:
            turns.put_nowait(None)

    async def _answered(self, data: bytes) -> bytes:
        """The answer to one request; a failed one leaves the stream open."""
        request = None
        try:
            with Holding(self._bodies) as holding:
                request = await parsed(pb.ModelInferRequest, data, self._limit_bytes, holding)
                answer = pb.ModelStreamInferResponse(infer_response=await self._api.infer(request))
        except Exception as error:
            answer = pb.ModelStreamInferResponse(error_message=status_of(error, METHOD).message)
            answer.infer_response.id = request.id if request is not None else ""
        # Each request has one answer, so an empty one to mark the end is never needed.
        codec.set_parameter(answer.infer_response, "triton_final_response", True)
        encoded: bytes = answer.SerializeToString()
        return encoded
