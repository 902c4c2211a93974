"""The gRPC server over an engine that waits and fails on demand: queues, deadlines, streams, limits, the stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from app import wiring
from app.api.body_room import BodyRoom
from app.api.grpc import open_inference_pb2 as pb
from app.api.grpc.server import SERVICE, GrpcServer
from app.api.grpc.streams import UNDER_WAY_MAX, Streams
from app.domain.builds import EngineRecord
from app.domain.errors import EngineNotFound
from app.serving.pool import EnginePool
from app.serving.service import InferenceService
from app.settings import Settings
from tests.fakes import LONG_S, FakeEngine, Gate, engine_record, eventually, soon

QUEUE_ROWS_MAX = 2


@dataclass
class Running:
    """A server, its engine's gate, and a client."""

    server: GrpcServer
    inference: InferenceService
    gate: Gate
    channel: grpc.aio.Channel
    bodies: BodyRoom

    def infer(self, *values: float, model: str = "net", timeout_us: int = 0, deadline_s: float | None = None) -> Any:
        call = self.channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return call(request(*values, model=model, timeout_us=timeout_us), timeout=deadline_s)

    def stream(self) -> Any:
        return self.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )()

    async def waiting(self, rows: int) -> None:
        await eventually(lambda: sum(state.waiting for state in self.inference.states()) == rows)

    async def occupied(self) -> asyncio.Task[Any]:
        """Have the only context run a request until the gate opens."""
        runs = len(self.gate.runs)
        first = asyncio.ensure_future(self.infer(1))
        await self.gate.entered(runs + 1)
        return first


def request(*values: float, model: str = "net", timeout_us: int = 0, id: str = "") -> Any:
    x = np.array([values], np.float32)
    made = pb.ModelInferRequest(model_name=model, id=id, raw_input_contents=[x.tobytes()])
    made.inputs.add(name="x", datatype="FP32", shape=x.shape)
    if timeout_us:
        made.parameters["timeout"].int64_param = timeout_us
    return made


def doubles(response: Any) -> list[float]:
    values: list[float] = np.frombuffer(response.raw_output_contents[0], np.float32).tolist()
    return values


def find(name: str, version: int | None) -> EngineRecord:
    if name == "broken":
        raise RuntimeError("a secret")
    if name != "net":
        raise EngineNotFound(f"There is no engine {name!r}.", hint="See /engines.")
    return engine_record()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    settings = Settings(data_dir=tmp_path / "data", max_body_mib=1)
    wiring.prepare(settings)
    gate = Gate()
    pool = EnginePool(
        load=lambda record: FakeEngine(gate=gate),
        budget_bytes=1 << 20,
        keep_alive_s=0,
        contexts=1,
        queue_rows_max=QUEUE_ROWS_MAX,
    )
    inference = InferenceService(find, pool)
    with wiring.connected_services(settings) as services:
        server = GrpcServer(replace(services, inference=inference), "127.0.0.1", 0)
        gate.open()  # the warm-up passes
        async with grpc.aio.insecure_channel(await server.start()) as channel:
            await inference.load("net")
            gate.shut()
            yield Running(server, inference, gate, channel, services.bodies)
        gate.open()
        await soon(server.stop(LONG_S))
        await soon(inference.close())


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await soon(call)
    return caught.value


# --- room ---------------------------------------------------------------------------------------------------------


async def test_a_message_that_finds_no_room_is_refused_and_leaves_none_taken(running: Running) -> None:
    limit_bytes = int(running.bodies.limit_bytes)
    running.bodies.take(limit_bytes)

    refused = await refusal(running.infer(1))
    stream = running.stream()
    await stream.write(request(1, id="a"))
    answer = await soon(stream.read())

    assert refused.code() is grpc.StatusCode.UNAVAILABLE
    assert "JETFORGE_BODIES_MIB" in answer.error_message
    assert running.bodies.held_bytes == limit_bytes
    running.bodies.give_back(limit_bytes)
    running.gate.open()
    assert doubles(await soon(running.infer(1))) == [2]
    assert running.bodies.held_bytes == 0


# --- waiting -----------------------------------------------------------------------------------------------------


async def test_a_cancelled_request_leaves_the_queue(running: Running) -> None:
    first = await running.occupied()
    second = running.infer(2)
    await running.waiting(1)

    second.cancel()

    await running.waiting(0)
    running.gate.open()
    assert doubles(await soon(first)) == [2]
    assert running.gate.runs[-1:] == [1]
    assert running.inference.statistics.of("net:1").requests == 1


async def test_a_request_whose_deadline_has_passed_leaves_the_queue(running: Running) -> None:
    first = await running.occupied()

    late = await refusal(running.infer(2, deadline_s=0.1))

    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await running.waiting(0)
    running.gate.open()
    assert doubles(await soon(first)) == [2]


async def test_the_timeout_parameter_is_microseconds_until_the_request_is_given_up(running: Running) -> None:
    first = await running.occupied()

    late = await refusal(running.infer(2, timeout_us=1000))

    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "0.001 s" in late.details() and "[request_timed_out]" in late.details()
    await running.waiting(0)
    running.gate.open()
    assert doubles(await soon(first)) == [2]
    assert doubles(await soon(running.infer(3, timeout_us=LONG_S * 1_000_000))) == [6]


async def test_a_full_queue_is_unavailable_and_says_when_to_come_back(running: Running) -> None:
    accepted = [await running.occupied()]
    for count in range(QUEUE_ROWS_MAX):
        accepted.append(asyncio.ensure_future(running.infer(2)))
        await running.waiting(count + 1)

    full = await refusal(running.infer(3))

    assert full.code() is grpc.StatusCode.UNAVAILABLE and "[queue_full]" in full.details()
    assert full.trailing_metadata()["retry-after"] == "1"
    running.gate.open()
    assert [doubles(answer) for answer in await soon(asyncio.gather(*accepted))] == [[2], [4], [4]]


# --- failures ----------------------------------------------------------------------------------------------------


async def test_an_engine_that_fails_is_an_internal_error_and_counted(running: Running) -> None:
    running.gate.open()

    failed = await refusal(running.infer(-1))

    assert failed.code() is grpc.StatusCode.INTERNAL and "[execution_failed]" in failed.details()
    assert running.inference.statistics.of("net:1").failures == 1
    assert doubles(await soon(running.infer(4))) == [8]


async def test_a_defect_of_the_service_tells_an_incident_and_nothing_else(running: Running) -> None:
    defect = await refusal(running.infer(1, model="broken"))

    assert defect.code() is grpc.StatusCode.INTERNAL
    assert "[internal_error]" in defect.details() and "secret" not in defect.details()


@pytest.mark.parametrize("compression", grpc.Compression)
async def test_a_message_over_the_limit_is_refused_however_small_it_was_made(
    running: Running, compression: grpc.Compression
) -> None:
    call = running.channel.unary_unary(f"/{SERVICE}/ModelInfer")

    too_large = await refusal(call(bytes(20 << 20), compression=compression))

    assert too_large.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # One that is small on the wire must be refused by us: grpc's own inflation fills the memory before it looks.
    assert compression is grpc.Compression.NoCompression or "[body_too_large]" in too_large.details()


@pytest.mark.parametrize("compression", grpc.Compression)
@pytest.mark.parametrize("columns", [1, 50_000])
async def test_a_compressed_message_is_read(running: Running, compression: grpc.Compression, columns: int) -> None:
    running.gate.open()
    call = running.channel.unary_unary(f"/{SERVICE}/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString)
    values = np.random.default_rng(1).random(columns, np.float32)

    answer = await soon(call(request(*values).SerializeToString(), compression=compression))

    np.testing.assert_array_equal(doubles(answer), 2 * values)


@pytest.mark.parametrize(
    "data", [b"\xff", b"\x1f\x8b", b"\x1f\x8b" + bytes(40), b"\x78\x9c" + bytes(40), b"\x0a\x02\xff\xff", b"\x78"]
)
async def test_bytes_that_are_no_message_are_an_invalid_argument(running: Running, data: bytes) -> None:
    for method in ("ModelInfer", "ModelMetadata", "ModelStatistics"):
        refused = await refusal(running.channel.unary_unary(f"/{SERVICE}/{method}")(data))

        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT and "[invalid_request]" in refused.details()


# --- streams -----------------------------------------------------------------------------------------------------


async def test_a_streams_answers_come_in_the_order_of_its_requests(running: Running) -> None:
    stream = running.stream()
    await stream.write(request(1, id="slow"))
    await running.gate.entered(2)  # after the warm-up
    await stream.write(request(1, id="unknown", model="nothing"))
    await stream.write(request(3, id="last"))
    await running.waiting(1)  # so the one before it is answered

    running.gate.open()
    await stream.done_writing()
    answers = [answer async for answer in stream]

    assert [answer.infer_response.id for answer in answers] == ["slow", "unknown", "last"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert "[engine_not_found]" in answers[1].error_message
    assert [doubles(answers[at].infer_response) for at in (0, 2)] == [[2], [6]]
    assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)


async def test_a_stream_may_send_far_more_than_can_be_under_way(running: Running) -> None:
    running.gate.open()
    stream = running.stream()

    async def send() -> None:
        for number in range(200):
            await stream.write(request(number, id=str(number)))
        await stream.done_writing()

    sending = asyncio.ensure_future(send())
    answers = await soon(_all(stream))
    await sending

    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(200)]
    answered = [answer for answer in answers if not answer.error_message]
    assert all(doubles(answer.infer_response) == [2 * float(answer.infer_response.id)] for answer in answered)
    assert answered and all("[queue_full]" in answer.error_message for answer in answers if answer.error_message)


async def test_a_stream_is_read_no_further_than_a_few_unanswered_requests(running: Running) -> None:
    first = await running.occupied()
    stream = running.stream()
    for number in range(5 * UNDER_WAY_MAX):
        await stream.write(request(number))

    # The queue takes some, refuses the others, and all of their answers wait for the first.
    totals = running.inference.statistics.of("net:1")
    await eventually(lambda: totals.failures >= UNDER_WAY_MAX - QUEUE_ROWS_MAX)
    for _ in range(20):
        await soon(running.channel.unary_unary(f"/{SERVICE}/ServerLive")(b""))

    assert totals.failures == UNDER_WAY_MAX - QUEUE_ROWS_MAX
    stream.cancel()
    running.gate.open()
    assert doubles(await soon(first)) == [2]


async def test_a_message_that_is_none_leaves_its_stream_open(running: Running) -> None:
    running.gate.open()
    stream = running.channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer", response_deserializer=pb.ModelStreamInferResponse.FromString
    )()

    await stream.write(b"\xff")
    await stream.write(request(5).SerializeToString())

    assert "[invalid_request]" in (await soon(stream.read())).error_message
    assert doubles((await soon(stream.read())).infer_response) == [10]
    stream.cancel()


async def test_a_cancelled_streams_requests_leave_the_queue(running: Running) -> None:
    first = await running.occupied()
    stream = running.stream()
    await stream.write(request(2))
    await stream.write(request(3))
    await running.waiting(2)

    stream.cancel()

    await running.waiting(0)
    running.gate.open()
    assert doubles(await soon(first)) == [2]


# --- the stop ----------------------------------------------------------------------------------------------------


async def test_a_stop_lets_requests_under_way_be_answered_and_ends_open_streams(running: Running) -> None:
    first = await running.occupied()
    idle, busy = running.stream(), running.stream()
    await busy.write(request(2))
    await idle.write(request(1, model="nothing"))
    await soon(idle.read())
    await running.waiting(1)

    stopping = asyncio.ensure_future(running.server.stop(LONG_S * 10))

    assert await soon(idle.code()) is grpc.StatusCode.UNAVAILABLE
    assert not stopping.done()
    running.gate.open()
    assert doubles(await soon(first)) == [2]
    assert doubles((await soon(busy.read())).infer_response) == [4]
    assert await soon(busy.code()) is grpc.StatusCode.UNAVAILABLE and "[shutting_down]" in await busy.details()
    await soon(stopping)
    assert (await refusal(running.infer(1, deadline_s=LONG_S))).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stop_cancels_what_outlives_its_grace(running: Running) -> None:
    first = await running.occupied()

    await soon(running.server.stop(0.05))

    assert (await refusal(first)).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def _all(stream: Any) -> list[Any]:
    return [answer async for answer in stream]


class Leaving:
    """A stream whose client leaves while its answer is written."""

    def __init__(self) -> None:
        self._messages = [request(1).SerializeToString()]

    async def read(self) -> Any:
        return self._messages.pop() if self._messages else await asyncio.Future()

    async def write(self, answer: bytes) -> None:
        raise grpc.aio.InternalError("Failed grpc_call_start_batch: 8")


class Echo:
    async def infer(self, asked: Any) -> Any:
        return pb.ModelInferResponse(id=asked.id)


async def test_a_stream_whose_client_leaves_while_an_answer_is_written_is_cancelled_and_no_defect() -> None:
    streams = Streams(Echo(), 1 << 20, BodyRoom(1 << 20))  # type: ignore[arg-type]

    with pytest.raises(asyncio.CancelledError):
        await soon(streams.serve(Leaving()))
