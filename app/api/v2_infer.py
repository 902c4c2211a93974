"""The inference request of the Open Inference Protocol, from its body to its answer, whoever received it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from fastapi import Response
from starlette.concurrency import run_in_threadpool

from app.api import problems, v2_body, v2_codec, v2_repeated
from app.api.body_room import Holding
from app.api.problems import problem, status_of
from app.api.responses import TensorResponse, Written, add_server_timing, tensor_lines
from app.api.services import Inferring
from app.api.tensors import JSON_GROWTH
from app.domain.builds import EngineRecord
from app.domain.errors import FeatureUnsupported, ServiceError, Unavailable
from app.domain.tensors import Signature, Tensors
from app.serving.service import Answer

OFF_LOOP_BYTES = 1 << 16  # JSON, and anything compressed, of more bytes than this is handled on a thread
STATUSES = {404: 404, 415: 501, 500: 500, 503: 503}  # the service's to the protocol's; all others are 400
HEADER_LENGTH = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"


@dataclass(frozen=True)
class Asked:
    """What a request's head says."""

    ref: str  # `name`, or `name:version`
    header_bytes: int | None  # of the JSON; None: all of the body is JSON
    coding: str = "identity"  # of the body
    wanted_coding: str | None = None  # of the answer
    is_timed: bool = False  # the answer is to tell its times
    reader: v2_repeated.Reader = field(default_factory=v2_repeated.Reader, compare=False)
    writer: v2_repeated.Writer = field(default_factory=v2_repeated.Writer, compare=False)


def asked(ref: str, headers: Mapping[str, str]) -> Asked:
    """Read the head.

    Raises:
        InvalidRequest: the header's length is no length.
    """
    return Asked(
        ref,
        v2_codec.header_length(headers.get(HEADER_LENGTH.lower())),
        v2_body.coding_of(headers),
        v2_body.wanted_coding(headers.get("accept-encoding", "")),
        "x-server-timing" in headers,
    )


async def answered(wired: Inferring, head: Asked, body: memoryview) -> Response:
    """Run the engine and write its answer."""
    arrived_ns = time.perf_counter_ns()
    record = await wired.inference.find(head.ref)
    with Holding(wired.bodies) as holding:
        request = await _decoded(head, body, record.built.signature, wired.settings.max_body_mib << 20, holding)
        input_ns = time.perf_counter_ns() - arrived_ns
        # By version: a newer one published in between may have another signature.
        if request.images:
            answer = await wired.inference.infer_images(record.ref, request.images, timeout_s=request.timeout_s)
        else:
            answer = await wired.inference.infer(record.ref, request.inputs, timeout_s=request.timeout_s)
        answered_ns = time.perf_counter_ns()
        response = await _encoded(head, request, answer)
    output_ns = time.perf_counter_ns() - answered_ns
    wired.inference.statistics.add_coding(record.ref, input_ns=input_ns, output_ns=output_ns)
    if head.is_timed:
        add_server_timing(response, answer.timings_ms, decode_ms=input_ns / 1e6, encode_ms=output_ns / 1e6)
    return response


class Steps:
    """For `app.api.fast_path`: what a client repeats, with binary tensors both ways."""

    def __init__(self, head: Asked) -> None:
        self.ref = head.ref
        self._head = head
        self._taken: v2_codec.InferRequest | None = None  # the last that was found to be of this kind
        self._is_plain = head.coding == "identity" and head.wanted_coding is None and not head.is_timed

    def form(self, body: memoryview, record: EngineRecord) -> v2_codec.InferRequest | None:
        head = self._head
        request = head.reader.repeated(body, head.header_bytes, record.built.signature) if self._is_plain else None
        if request is not None and request is not self._taken and _is_binary(request):
            self._taken = request
        return request if request is self._taken else None

    def learn(self, body: memoryview, record: EngineRecord) -> None:
        with suppress(ServiceError):  # the long way says what is wrong
            self._head.reader.decoded(body, self._head.header_bytes, record.built.signature)

    def inputs(self, body: memoryview, form: v2_codec.InferRequest, record: EngineRecord) -> Tensors:
        return self._head.reader.tensors(body)

    def written(self, form: v2_codec.InferRequest, answer: Answer) -> Written:
        pieces, header_bytes = self._head.writer.pieces(form, answer.engine, answer.outputs)
        length = sum(map(len, pieces))
        return Written(200, tensor_lines(length, OCTETS, ((HEADER_LENGTH, str(header_bytes)),)), pieces)

    def refused(self, error: Exception, path: str) -> Response:
        return answer_to(error, path)


def answer_to(error: Exception, path: str) -> Response:
    """The answer to a request that failed, whatever with."""
    refused = refusal(error) if isinstance(error, ServiceError) else None
    return refused or problems.answer_to(error, path)


def refusal(error: ServiceError) -> Response | None:
    """The error as the protocol answers it; None for one that is to be answered, and written to the log, as all are."""
    status = STATUSES.get(status_of(error), 400)
    if status == 500:
        return None
    headers = {}
    if isinstance(error, FeatureUnsupported):
        headers["Accept-Encoding"] = v2_body.CODINGS
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after_s)
    return problem(status, error.code, error.title, error.detail, error.hint, headers)


async def _decoded(
    head: Asked, body: memoryview, signature: Signature, limit_bytes: int, holding: Holding
) -> v2_codec.InferRequest:
    is_plain = head.coding == "identity"
    json_bytes = len(body) if head.header_bytes is None else head.header_bytes
    if is_plain and json_bytes <= OFF_LOOP_BYTES:
        return head.reader.decoded(body, head.header_bytes, signature)

    def read() -> v2_codec.InferRequest:
        plain = body if is_plain else v2_body.inflated(body, head.coding, limit_bytes, holding)
        holding.take(JSON_GROWTH * min(len(plain), head.header_bytes or len(plain)))
        return v2_codec.decoded(plain, head.header_bytes, signature)

    return await run_in_threadpool(read)


async def _encoded(head: Asked, request: v2_codec.InferRequest, answer: Answer) -> Response:
    """The answer, written on a thread when that would hold up the event loop for longer than the hop takes."""
    is_large = any(output.nbytes > OFF_LOOP_BYTES for output in answer.outputs.values())
    if is_large and (
        head.wanted_coding is not None or any(wanted.classes or not wanted.is_binary for wanted in request.outputs)
    ):
        return await run_in_threadpool(_response, head, request, answer)
    return _response(head, request, answer)


def _is_binary(request: v2_codec.InferRequest) -> bool:
    """Whether its answer is binary tensors, at least one, and may take as long as it takes."""
    outputs = request.outputs
    return request.timeout_s is None and bool(outputs) and all(one.is_binary and not one.classes for one in outputs)


def _response(head: Asked, request: v2_codec.InferRequest, answer: Answer) -> Response:
    pieces, header_bytes = head.writer.pieces(request, answer.engine, answer.outputs)
    headers = {} if header_bytes is None else {HEADER_LENGTH: str(header_bytes)}
    if head.wanted_coding is not None:
        pieces = [v2_body.deflated(b"".join(pieces), head.wanted_coding)]
        headers["Content-Encoding"] = head.wanted_coding
    return TensorResponse(pieces, "application/json" if header_bytes is None else OCTETS, headers)
