"""Uploads: each file streams into a draft of the artefact store and becomes an artefact only when all is well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Query
from starlette.requests import Request

from app.api.multipart import Sink, media_type, pieces, read_body, read_multipart
from app.domain.errors import InvalidRequest, UploadTooLarge
from app.storage.artefacts import ArtefactStore, Draft

URLENCODED = "application/x-www-form-urlencoded"
FIELD_BYTES_MAX = 1 << 20  # of one text field: labels of 100,000 classes fit
Filename = Annotated[str, Query(description="what a raw body is called where it is listed")]


@dataclass(frozen=True)
class ReceivedFile:
    """A file that has arrived whole but is not yet stored."""

    draft: Draft
    name: str  # as the client called it; may be anything


@dataclass
class Form:
    """The fields and files of one multipart body."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, ReceivedFile] = field(default_factory=dict)


class _TextSink:
    def __init__(self, name: str, file_fields: Collection[str]) -> None:
        self._name = name
        self._file_fields = file_fields
        self._data = bytearray()

    def write(self, chunk: bytes) -> None:
        self._data += chunk
        if len(self._data) > FIELD_BYTES_MAX:
            raise self._refused(f"is larger than {FIELD_BYTES_MAX >> 20} MiB")

    def text(self) -> str:
        try:
            return self._data.decode()
        except UnicodeDecodeError as error:
            raise self._refused("is not UTF-8 text") from error

    def _refused(self, why: str) -> InvalidRequest:
        names = " or ".join(self._file_fields)
        return InvalidRequest(
            f"The field {self._name[:80]!r} {why}.",
            hint=f"Here a file goes into the field {names}: -F {next(iter(self._file_fields))}=@path.",
        )


@asynccontextmanager
async def received_form(
    request: Request, store: ArtefactStore, file_fields: Collection[str], limit_bytes: int
) -> AsyncIterator[Form]:
    """Receive a multipart body; parts named in `file_fields` stream to disk, all others are text.

    On leaving, drafts that nobody committed are removed, whatever happened: a client that hangs up, a part that
    is refused and a disk that runs full leave nothing behind.
    """
    form = Form()
    if media_type(request) == URLENCODED:  # no file in it: everything is stored already
        form.fields.update(_pairs(await read_body(request, FIELD_BYTES_MAX)))
        yield form
        return
    texts: dict[str, _TextSink] = {}
    with ExitStack() as drafts:

        def open_part(name: str, filename: str | None) -> Sink:
            if name in texts or name in form.files:
                raise InvalidRequest(f"The field {name[:80]!r} appears twice.", hint="Send each field once.")
            if name not in file_fields:
                texts[name] = _TextSink(name, file_fields)
                return texts[name]
            draft = drafts.enter_context(store.draft())
            form.files[name] = ReceivedFile(draft, filename or "")
            return draft

        await read_multipart(request, open_part, limit_bytes + FIELD_BYTES_MAX, lambda: upload_too_large(limit_bytes))
        form.fields.update({name: sink.text() for name, sink in texts.items()})
        yield form


def _pairs(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1000)
    except ValueError as error:
        raise InvalidRequest("The form is not URL-encoded text.", hint="With curl, use -F name=value.") from error
    if len(dict(pairs)) != len(pairs):
        raise InvalidRequest("A field appears twice.", hint="Send each field once.")
    return dict(pairs)


@asynccontextmanager
async def received_file(
    request: Request, store: ArtefactStore, name: str, limit_bytes: int, filename: str = ""
) -> AsyncIterator[ReceivedFile]:
    """Receive one file: the part `name` of a multipart body, or the whole raw body, called `filename`."""
    if media_type(request) == "multipart/form-data":
        async with received_form(request, store, {name}, limit_bytes) as form:
            if name not in form.files:
                raise InvalidRequest(f"The part {name!r} is missing.", hint=f"With curl: -F {name}=@path.")
            yield form.files[name]
        return
    with store.draft() as draft:
        async for piece in pieces(request, limit_bytes, lambda: upload_too_large(limit_bytes)):
            await asyncio.to_thread(draft.write, piece)
        yield ReceivedFile(draft, filename)


def upload_too_large(limit_bytes: int) -> UploadTooLarge:
    return UploadTooLarge(
        f"The upload is larger than {limit_bytes >> 20} MiB.", hint="Raise JETFORGE_MAX_UPLOAD_MIB on the device."
    )
