"""POST /infer: images or tensors in, predictions or tensors out."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.api import openapi, tensors
from app.api.multipart import Sink, body_too_large, media_type, read_body, read_multipart
from app.api.responses import json_response
from app.api.services import Wired
from app.domain.errors import InvalidRequest, MediaTypeUnsupported
from app.domain.tensors import Signature, Tensors
from app.serving.service import Answer, top_k

router = APIRouter(tags=["inference"])

IMAGES = {"image/jpeg", "image/png", "image/bmp", "image/webp"}
JSON, NPY, NPZ, RAW = "application/json", "application/x-npy", "application/x-npz", "application/octet-stream"
FORM = "multipart/form-data"


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

    Images (one as the raw body, several as multipart parts) go through the engine's own preprocessing recipe.
    """
    kind = media_type(request)
    _refuse_unknown(kind)
    engine = await wired.inference.find(ref)  # before the body is read: it may be large, and the name wrong
    limit_bytes = wired.settings.max_body_mib << 20
    is_image = kind in IMAGES or kind == FORM
    if is_image:
        images = await _images(request, limit_bytes) if kind == FORM else [await read_body(request, limit_bytes)]
        answer = await wired.inference.infer_images(ref, images)
    else:
        body = await read_body(request, limit_bytes)
        inputs = await run_in_threadpool(_parsed, kind, body, engine.built.signature, shape, limit_bytes)
        answer = await wired.inference.infer(ref, inputs)
    return _response(request, answer, top, outputs, is_image)


def _refuse_unknown(kind: str) -> None:
    known = (*sorted(IMAGES), FORM, JSON, NPY, NPZ, RAW)
    if kind not in known:
        raise MediaTypeUnsupported(
            f"The content type is {kind[:80] or 'missing'}; {', '.join(known)} are read.",
            hint="With curl: -H 'Content-Type: image/png' --data-binary @image.png.",
        )


def _parsed(kind: str, body: bytes, signature: Signature, shape: str | None, limit_bytes: int) -> Tensors:
    if kind == JSON:
        return tensors.from_json(body, signature)
    if kind == NPZ:
        return tensors.from_npz(body, limit_bytes)
    if kind == NPY:
        return {tensors.only_input(signature).name: tensors.from_npy(body)}
    wanted = tensors.parsed_shape(shape) if shape is not None else None
    return {tensors.only_input(signature).name: tensors.from_raw(body, signature, wanted)}


class _Part(bytearray):
    def write(self, chunk: bytes) -> None:
        self.extend(chunk)


async def _images(request: Request, limit_bytes: int) -> list[bytes]:
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
    return [bytes(part) for part in parts]


def _response(request: Request, answer: Answer, top: int, outputs: bool | None, is_image: bool) -> Response:
    accept = request.headers.get("accept", "")
    if NPZ in accept:
        return Response(tensors.to_npz(answer.outputs), media_type=NPZ, headers=_headers(answer))
    if NPY in accept or RAW in accept:
        return _single(answer, NPY if NPY in accept else RAW)
    body: dict[str, Any] = {"engine": answer.engine.ref}
    ranked = top_k(answer.outputs, answer.engine, top)
    if ranked is not None:
        body["predictions"] = [[asdict(item) for item in row] for row in ranked]
    if outputs or (outputs is None and (ranked is None or not is_image)):
        body["outputs"] = tensors.to_json(answer.outputs)
    body["timings_ms"] = {name: round(ms, 3) for name, ms in answer.timings_ms.items()}
    return json_response(body)


def _single(answer: Answer, kind: str) -> Response:
    if len(answer.outputs) != 1:
        raise InvalidRequest(
            f"The engine has {len(answer.outputs)} outputs; {kind} carries one.", hint=f"Ask for {NPZ} or {JSON}."
        )
    (output,) = answer.outputs.values()
    headers = _headers(answer) | {
        "X-Tensor-Shape": "x".join(map(str, output.shape)),
        "X-Tensor-Dtype": output.dtype.name,
    }
    if kind == RAW:
        return Response(output.tobytes(), media_type=RAW, headers=headers)
    file = io.BytesIO()
    np.save(file, output, allow_pickle=False)
    return Response(file.getvalue(), media_type=NPY, headers=headers)


def _headers(answer: Answer) -> dict[str, str]:
    return {"X-Engine": answer.engine.ref}
