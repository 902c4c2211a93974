"""POST /infer: images or tensors in, predictions or tensors out."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.api import openapi, tensors, v2_body
from app.api.body_room import Holding
from app.api.multipart import Sink, body_too_large, media_type, read_multipart
from app.api.problems import answer_to
from app.api.responses import Piece, TensorResponse, Written, add_server_timing, json_bytes, raw, tensor_lines
from app.api.services import Inferring, Wired
from app.domain.builds import EngineRecord
from app.domain.errors import InvalidRequest, MediaTypeUnsupported
from app.domain.tensors import ANY, Shape, Signature, Tensors
from app.serving.service import Answer, top_k

router = APIRouter(tags=["inference"])

IMAGES = {"image/jpeg", "image/png", "image/bmp", "image/webp"}
JSON, NPY, NPZ, RAW = "application/json", "application/x-npy", "application/x-npz", "application/octet-stream"
FORM = "multipart/form-data"
OFF_LOOP_BYTES = 1 << 16  # JSON of more bytes than this is read on a thread
TIMEOUT = "x-timeout-ms"


@dataclass(frozen=True)
class Asked:
    """What a request's head says."""

    ref: str
    kind: str  # the body's media type, a known one
    accept: str = ""
    top: int = 5
    outputs: bool | None = None  # in a JSON answer; None: where nothing else tells what came out
    shape: str | None = None  # of an octet-stream body
    timeout_s: float | None = None  # for the answer; None: as long as it takes
    is_timed: bool = False  # the answer is to tell its times
    coding: str = "identity"  # of the body


@router.post("/infer/{ref}", openapi_extra=openapi.INFER_BODY, responses=openapi.INFER_ANSWER)
async def infer(
    request: Request,
    wired: Wired,
    ref: str,
    top: Annotated[int, Query(ge=1, le=1000, description="classes a row, best first")] = 5,
    outputs: Annotated[bool | None, Query(description="include the raw outputs in a JSON answer")] = None,
    shape: Annotated[str | None, Query(description="of an octet-stream body: 1x3x224x224")] = None,
) -> Response:
    """Run an engine, loading it first when it is cold. `ref` is `name` (newest version) or `name:version`.

    Images (one as the raw body, several as multipart parts) go through the engine's own preprocessing recipe. With
    the header `X-Timeout-Ms` the answer comes within so many milliseconds, or is 503; with `X-Server-Timing` it tells
    where its time went.
    """
    head = asked(ref, media_type(request), request.headers, top, outputs, shape)
    await wired.inference.find(ref)  # before the body is read: it may be large, and the name wrong
    limit_bytes = wired.settings.max_body_mib << 20
    if head.kind == FORM:
        return await answered(wired, head, await _images(request, limit_bytes))
    return await answered(wired, head, [await v2_body.read_aligned(request, limit_bytes, 0)])


def asked(
    ref: str, kind: str, headers: Mapping[str, str], top: int = 5, outputs: bool | None = None, shape: str | None = None
) -> Asked:
    """Read the head.

    Raises:
        MediaTypeUnsupported: nothing here reads such a body.
        InvalidRequest: the time limit is no number.
    """
    known = (*sorted(IMAGES), FORM, JSON, NPY, NPZ, RAW)
    if kind not in known:
        raise MediaTypeUnsupported(
            f"The content type is {kind[:80] or 'missing'}; {', '.join(known)} are read.",
            hint="With curl: -H 'Content-Type: image/png' --data-binary @image.png.",
        )
    timeout_s = _timeout_s(headers.get(TIMEOUT))
    is_timed, coding = "x-server-timing" in headers, v2_body.coding_of(headers)
    return Asked(ref, kind, headers.get("accept", ""), top, outputs, shape, timeout_s, is_timed, coding)


async def answered(wired: Inferring, head: Asked, bodies: list[memoryview]) -> Response:
    """Run the engine on one body, or on several images, and write its answer."""
    arrived_ns = time.perf_counter_ns()
    input_ns = 0
    limit_bytes = wired.settings.max_body_mib << 20
    with Holding(wired.bodies) as holding:
        if head.coding != "identity" and head.kind != FORM:
            bodies = [await run_in_threadpool(v2_body.inflated, bodies[0], head.coding, limit_bytes, holding)]
            input_ns = time.perf_counter_ns() - arrived_ns
        if head.kind in IMAGES or head.kind == FORM:
            answer = await wired.inference.infer_images(head.ref, bodies, timeout_s=head.timeout_s)
        else:
            record = await wired.inference.find(head.ref)
            inputs = await _parsed(head, bodies[0], record.built.signature, limit_bytes, holding)
            input_ns = time.perf_counter_ns() - arrived_ns
            answer = await wired.inference.infer(record.ref, inputs, timeout_s=head.timeout_s)
    answered_ns = time.perf_counter_ns()
    response = await _encoded(head, answer)
    output_ns = time.perf_counter_ns() - answered_ns
    wired.inference.statistics.add_coding(answer.engine.ref, input_ns=input_ns, output_ns=output_ns)
    if head.is_timed:
        add_server_timing(response, answer.timings_ms, decode_ms=input_ns / 1e6, encode_ms=output_ns / 1e6)
    return response


class Steps:
    """For `app.api.fast_path`: bare tensors both ways, or an image."""

    def __init__(self, head: Asked, prepares_images: Callable[[EngineRecord], bool]) -> None:
        self.ref = head.ref
        self._head = head
        self._prepares_images = prepares_images
        is_plain = head.timeout_s is None and not head.is_timed and NPZ not in head.accept and head.coding == "identity"
        self._answers_tensor = NPY in head.accept or RAW in head.accept
        self._is_image = is_plain and head.kind in IMAGES
        self._judged: EngineRecord | None = None  # the last whose answers were looked at
        self._fits = False  # they may be written on the event loop
        self._is_tensor = is_plain and head.kind in (RAW, NPY) and self._answers_tensor

    def form(self, body: memoryview, record: EngineRecord) -> bool | None:
        return self._is_tensor or (self._is_image and self._takes_image(record)) or None

    def learn(self, body: memoryview, record: EngineRecord) -> None:
        pass  # the head says it all

    def inputs(self, body: memoryview, form: bool, record: EngineRecord) -> Tensors | memoryview:
        return body if self._is_image else _bare(self._head, body, record.built.signature)

    def written(self, form: bool, answer: Answer) -> Written:
        if not self._answers_tensor:
            data = _json(self._head, answer)
            return Written(200, tensor_lines(len(data), JSON, ()), [data])
        kind = _single_kind(self._head)
        piece, headers = _single(answer, kind)
        return Written(200, tensor_lines(len(piece), kind, headers), [piece])

    def refused(self, error: Exception, path: str) -> Response:
        return answer_to(error, path)

    def _takes_image(self, record: EngineRecord) -> bool:
        if record is not self._judged:
            self._judged = record
            self._fits = self._answers_tensor or _answers_little(record.built.signature)
        return self._fits and self._prepares_images(record)


def _answers_little(signature: Signature) -> bool:
    """Whether the answer to one image may be written as JSON on the event loop; with open lengths, nobody knows."""
    shapes = [output.shape[1:] if signature.rows_max > 1 else output.shape for output in signature.outputs]
    return all(ANY not in shape for shape in shapes) and sum(map(prod, shapes)) <= OFF_LOOP_BYTES // 4


def _timeout_s(text: str | None) -> float | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) or float(text) == 0:
        raise InvalidRequest(f"X-Timeout-Ms is {text[:40]!r}.", hint="Send a number of milliseconds above 0.")
    return float(text) / 1e3


async def _parsed(head: Asked, body: memoryview, signature: Signature, limit_bytes: int, holding: Holding) -> Tensors:
    if head.kind in (NPY, RAW):
        return _bare(head, body, signature)
    if head.kind == NPZ:
        return await run_in_threadpool(tensors.from_npz, body, limit_bytes, holding)
    if len(body) > OFF_LOOP_BYTES:
        holding.take(tensors.JSON_GROWTH * len(body))
        return await run_in_threadpool(tensors.from_json, body, signature)
    return tensors.from_json(body, signature)


def _bare(head: Asked, body: memoryview, signature: Signature) -> Tensors:
    """The only input, from a body that is nothing else."""
    name = tensors.only_input(signature).name
    if head.kind == NPY:
        return {name: tensors.from_npy(body)}
    wanted = tensors.parsed_shape(head.shape) if head.shape is not None else None
    return {name: tensors.from_raw(body, signature, wanted)}


class _Part(bytearray):
    def write(self, chunk: bytes) -> None:
        self.extend(chunk)


async def _images(request: Request, limit_bytes: int) -> list[memoryview]:
    """The image parts of a multipart body, in their order."""
    parts: list[_Part] = []

    def open_part(name: str, filename: str | None) -> Sink:
        if name not in ("image", "images", "file"):
            raise InvalidRequest(
                f"The part {name[:80]!r} is not known here.", hint="Send images as parts named image: -F image=@a.jpg."
            )
        parts.append(_Part())
        return parts[-1]

    await read_multipart(request, open_part, limit_bytes, lambda: body_too_large(limit_bytes))
    if not parts:
        raise InvalidRequest("The multipart body has no image.", hint="-F image=@a.jpg, once for each image.")
    return [memoryview(part) for part in parts]


async def _encoded(head: Asked, answer: Answer) -> Response:
    """The answer, written on a thread when that would hold up the event loop for longer than the hop takes."""
    is_single = NPZ not in head.accept and (NPY in head.accept or RAW in head.accept)
    if is_single or sum(output.nbytes for output in answer.outputs.values()) <= OFF_LOOP_BYTES:
        return _response(head, answer)
    return await run_in_threadpool(_response, head, answer)


def _response(head: Asked, answer: Answer) -> Response:
    if NPZ in head.accept:
        return TensorResponse([tensors.to_npz(answer.outputs)], NPZ, {"X-Engine": answer.engine.ref})
    if NPY in head.accept or RAW in head.accept:
        kind = _single_kind(head)
        piece, headers = _single(answer, kind)
        return TensorResponse([piece], kind, dict(headers))
    return Response(_json(head, answer), media_type=JSON)


def _json(head: Asked, answer: Answer) -> bytes:
    is_image = head.kind in IMAGES or head.kind == FORM
    body: dict[str, Any] = {"engine": answer.engine.ref}
    ranked = top_k(answer.outputs, answer.engine, head.top)
    if ranked is not None:
        body["predictions"] = ranked
    if head.outputs or (head.outputs is None and (ranked is None or not is_image)):
        body["outputs"] = tensors.to_json(answer.outputs)
    body["timings_ms"] = {name: round(ms, 3) for name, ms in answer.timings_ms.items()}
    return json_bytes(body)


def _single_kind(head: Asked) -> str:
    return NPY if NPY in head.accept else RAW


def _single(answer: Answer, kind: str) -> tuple[Piece, tuple[tuple[str, str], ...]]:
    """The only output as a body, and its headers."""
    if len(answer.outputs) != 1:
        raise InvalidRequest(
            f"The engine has {len(answer.outputs)} outputs; {kind} carries one.", hint=f"Ask for {NPZ} or {JSON}."
        )
    (output,) = answer.outputs.values()
    headers = _tensor_headers(answer.engine.ref, output.shape, output.dtype)
    if kind == RAW:
        return raw(output), headers
    file = io.BytesIO()
    np.save(file, output, allow_pickle=False)
    return file.getvalue(), headers


@lru_cache(maxsize=256)  # the name of a dtype alone takes 2 µs
def _tensor_headers(ref: str, shape: Shape, dtype: np.dtype[Any]) -> tuple[tuple[str, str], ...]:
    shape_text = "x".join(map(str, shape))
    return ("X-Engine", ref), ("X-Tensor-Shape", shape_text), ("X-Tensor-Dtype", dtype.name)
