"""Range headers: what names bytes of the file is answered with them, nonsense is ignored, all else is a problem."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Response

from app.api.ranges import RangedFile

CONTENT = bytes(range(100))


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    path = tmp_path / "engine.bin"
    path.write_bytes(CONTENT)
    app = FastAPI()

    @app.get("/file")
    def file() -> Response:
        return RangedFile(path, stat_result=path.stat(), headers={"ETag": '"digest"'})

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://jetson") as client:
        yield client


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("bytes=0-3", CONTENT[:4]),
        ("Bytes = 10-", CONTENT[10:]),
        ("bytes=-4", CONTENT[-4:]),
        ("bytes=-1000", CONTENT),
        ("bytes=90-1000", CONTENT[90:]),
        ("bytes=0-3, 1000-, ,-0", CONTENT[:4]),
    ],
)
async def test_bytes_that_are_there_are_sent(client: httpx.AsyncClient, text: str, content: bytes) -> None:
    answer = await client.get("/file", headers={"Range": text})

    assert (answer.status_code, answer.content) == (206, content)


@pytest.mark.parametrize(
    "text",
    [
        "items=1-2",
        "bytes=5-1",
        "bytes=abc",
        "bytes=",
        "bytes=-",
        "bytes=--5",
        "bytes=1_0-20",
        "bytes=0-1,x",
        "bytes 0-1",
    ],
)
async def test_a_range_that_means_nothing_is_ignored(client: httpx.AsyncClient, text: str) -> None:
    answer = await client.get("/file", headers={"Range": text})

    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize("text", ["bytes=100-", "bytes=-0", "bytes=999999999999999999999-", "bytes=200-300,400-"])
async def test_bytes_that_are_not_there_are_a_problem_that_tells_the_length(
    client: httpx.AsyncClient, text: str
) -> None:
    answer = await client.get("/file", headers={"Range": text})

    assert (answer.status_code, answer.headers["content-type"]) == (416, "application/problem+json")
    assert (answer.headers["content-range"], answer.json()["code"]) == ("bytes */100", "range_not_satisfiable")
    assert text in answer.json()["detail"] and answer.json()["hint"]


async def test_a_range_of_another_version_of_the_file_is_ignored(client: httpx.AsyncClient) -> None:
    headers = {"Range": "bytes=1000-"}

    other = await client.get("/file", headers={**headers, "If-Range": '"other"'})
    same = await client.get("/file", headers={**headers, "If-Range": '"digest"'})

    assert (other.status_code, other.content, same.status_code) == (200, CONTENT, 416)
