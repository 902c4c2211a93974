"""GRPCInferenceService: what each of its methods answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from starlette.concurrency import run_in_threadpool

from app import __version__
from app.api import v2_codec, v2_describe, v2_repository
from app.api.grpc import codec
from app.api.grpc import open_inference_pb2 as pb
from app.api.grpc.messages import OFF_LOOP_BYTES
from app.api.services import Services
from app.domain.errors import NotFound, RequestTimedOut
from app.serving.service import Answer

Method = Callable[[Any], Awaitable[Any]]  # a message to its answer


class InferenceApi:
    """The service's unary methods; `ModelStreamInfer` is `infer` many times (see `streams`)."""

    def __init__(self, services: Services) -> None:
        self._wired = services
        self.methods: dict[str, tuple[Any, Method]] = {  # by name, with the kind of message that it takes
            "ServerLive": (pb.ServerLiveRequest, self.server_live),
            "ServerReady": (pb.ServerReadyRequest, self.server_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self.server_metadata),
            "ModelReady": (pb.ModelReadyRequest, self.model_ready),
            "ModelMetadata": (pb.ModelMetadataRequest, self.model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, self.model_configuration),
            "ModelStatistics": (pb.ModelStatisticsRequest, self.statistics),
            "ModelInfer": (pb.ModelInferRequest, self.infer),
            "RepositoryIndex": (pb.RepositoryIndexRequest, self.repository_index),
            "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, self.load_model),
            "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, self.unload_model),
        }

    async def server_live(self, asked: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, asked: Any) -> Any:
        return pb.ServerReadyResponse(ready=True)

    async def server_metadata(self, asked: Any) -> Any:
        return pb.ServerMetadataResponse(name="jetforge", version=__version__, extensions=v2_repository.EXTENSIONS)

    async def model_ready(self, asked: Any) -> Any:
        """Not ready: unknown, or unloaded by name and neither used nor loaded since."""
        try:
            record = await self._wired.inference.find(v2_repository.engine_ref(asked.name, asked.version))
        except NotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=not self._wired.inference.is_withdrawn(record))

    async def model_metadata(self, asked: Any) -> Any:
        record = await self._wired.inference.find(v2_repository.engine_ref(asked.name, asked.version))
        versions = sorted(known.version for known in await v2_repository.published(self._wired, record.name))
        return ParseDict(v2_describe.metadata(record, versions), pb.ModelMetadataResponse())

    async def model_configuration(self, asked: Any) -> Any:
        record = await self._wired.inference.find(v2_repository.engine_ref(asked.name, asked.version))
        return ParseDict({"config": v2_describe.configuration(record)}, pb.ModelConfigResponse())

    async def statistics(self, asked: Any) -> Any:
        """Of one version; of all versions when none is named; of all engines when no name is given."""
        records = [] if asked.name else await v2_repository.published(self._wired)
        if asked.name:
            record = await self._wired.inference.find(v2_repository.engine_ref(asked.name, asked.version))
            records = [record] if asked.version else await v2_repository.published(self._wired, record.name)
        totals = self._wired.inference.statistics
        stats = [v2_describe.statistics(record, totals.of(record.ref)) for record in records]
        return ParseDict({"model_stats": stats}, pb.ModelStatisticsResponse())

    async def infer(self, asked: Any) -> Any:
        """Run an engine, loading it first when it is cold."""
        arrived_ns = time.perf_counter_ns()
        inference = self._wired.inference
        limit_s = codec.timeout_s(asked)
        record = await inference.find(v2_repository.engine_ref(asked.model_name, asked.model_version))
        is_long = not asked.raw_input_contents and asked.ByteSize() > OFF_LOOP_BYTES
        request = await _maybe_threaded(is_long, codec.decoded, asked, record.built.signature)
        input_ns = time.perf_counter_ns() - arrived_ns
        try:
            answer = await asyncio.wait_for(self._ran(record.ref, request), limit_s)
        except asyncio.TimeoutError as error:
            raise RequestTimedOut(
                f"{record.ref} did not answer within the request's timeout of {limit_s} s.",
                hint="Send the request again, with a longer timeout or none.",
            ) from error
        answered_ns = time.perf_counter_ns()
        is_long = any(wanted.classes or not wanted.is_binary for wanted in request.outputs) and (
            sum(output.nbytes for output in answer.outputs.values()) > OFF_LOOP_BYTES
        )
        message = await _maybe_threaded(is_long, codec.encoded, request, answer)
        output_ns = time.perf_counter_ns() - answered_ns
        inference.statistics.add_coding(record.ref, input_ns=input_ns, output_ns=output_ns)
        return message

    async def _ran(self, ref: str, request: v2_codec.InferRequest) -> Answer:
        if request.images:
            return await self._wired.inference.infer_images(ref, request.images)
        return await self._wired.inference.infer(ref, request.inputs)

    async def repository_index(self, asked: Any) -> Any:
        models = await v2_repository.index(self._wired, only_ready=asked.ready)
        return pb.RepositoryIndexResponse(models=[pb.RepositoryIndexResponse.ModelIndex(**entry) for entry in models])

    async def load_model(self, asked: Any) -> Any:
        await v2_repository.load(self._wired, asked.model_name, asked.parameters)
        return pb.RepositoryModelLoadResponse()

    async def unload_model(self, asked: Any) -> Any:
        await v2_repository.unload(self._wired, asked.model_name)
        return pb.RepositoryModelUnloadResponse()


async def _maybe_threaded(takes_long: bool, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do the work on a thread when it would hold up the event loop for longer than the hop takes."""
    return await run_in_threadpool(work, *arguments) if takes_long else work(*arguments)
