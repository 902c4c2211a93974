"""An engine whose file is no longer what was stored: put aside, built again by itself, served again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import networks
from tests.service import Service

MODEL = networks.doubled().SerializeToString()
X = {"inputs": {"x": [[1.0, 2.0, 3.0, 4.0]]}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("damaged") / "data").start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log


def file_of(service: Service, client: httpx.Client, ref: str) -> Path:
    """The engine's file in the store."""
    digest = client.get(f"/engines/{ref}/file", headers={"Range": "bytes=0-0"}).headers["etag"].strip('"')
    name = digest.removeprefix("sha256:")
    return service.data_dir / "artefacts" / "objects" / name[:2] / name


def damage(path: Path) -> bytes:
    """Turn one bit of the file, which keeps its size; its bytes then."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    return bytes(content)


def infer(client: httpx.Client, ref: str) -> httpx.Response:
    return client.post(f"/infer/{ref}", json=X)


def damaged_at(client: httpx.Client, ref: str) -> Any:
    return client.get(f"/engines/{ref}").json()["damaged_at"]


def test_a_damaged_engine_is_put_aside_and_built_again_without_anybody_asking(
    service: Service, client: httpx.Client
) -> None:
    service.build(client, MODEL, "net")
    path = file_of(service, client, "net")
    content = damage(path)

    refused = infer(client, "net")
    again = infer(client, "net")
    jobs = client.get("/jobs", params={"name": "net"}).json()["jobs"]
    marked = client.get("/engines/net:1").json()
    rebuilt = service.ended(client, jobs[0]["id"])
    service.eventually(lambda: infer(client, "net").status_code == 200)

    assert (refused.status_code, refused.json()["code"]) == (503, "engine_damaged")
    assert jobs[0]["id"] in refused.json()["hint"] and refused.headers["retry-after"] == "30"
    assert again.status_code in (200, 503) and len(jobs) == 2
    assert marked["damaged_at"] is not None or rebuilt["state"] == "succeeded"
    assert (rebuilt["state"], rebuilt["reused"]) == ("succeeded", False)
    assert (service.data_dir / "artefacts" / "quarantine" / path.name).read_bytes() == content
    assert infer(client, "net").json()["outputs"]["y"]["data"] == [[2.0, 4.0, 6.0, 8.0]]
    assert damaged_at(client, rebuilt["engine"]) is None


def test_an_engine_whose_file_is_gone_is_built_again(service: Service, client: httpx.Client) -> None:
    service.build(client, networks.doubled(5).SerializeToString(), "gone")
    file_of(service, client, "gone").unlink()

    file = client.get("/engines/gone/file")
    refused = client.post("/engines/gone/load")
    service.ended(client, client.get("/jobs").json()["jobs"][0]["id"])

    assert refused.json()["code"] == file.json()["code"] == "engine_damaged"
    assert client.post("/engines/gone/load").status_code == 200


def test_a_damaged_engine_is_not_reused_under_another_name(service: Service, client: httpx.Client) -> None:
    model = networks.doubled(6).SerializeToString()
    service.build(client, model, "first", simplify="false")
    damage(file_of(service, client, "first"))
    client.post("/engines/first/load")

    second = service.build(client, model, "second", simplify="false")

    assert second["state"] == "succeeded"
    assert client.post("/engines/second/load").status_code == 200


def test_a_damaged_upload_works_again_once_its_bytes_are_sent_again(service: Service, client: httpx.Client) -> None:
    model = networks.doubled(7).SerializeToString()
    client.post("/engines", params={"name": "mine"}, content=model)
    damage(file_of(service, client, "mine"))

    refused = client.post("/engines/mine/load").json()
    marked = damaged_at(client, "mine")
    again = client.post("/engines", params={"name": "mine"}, content=model).json()

    assert refused["code"] == "engine_damaged" and "upload" in refused["hint"]
    assert marked is not None
    assert (again["ref"], again["damaged_at"]) == ("mine:1", None)
    assert client.post("/engines/mine/load").status_code == 200
