"""API keys on a running service: asked for, checked, revoked, listed."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.domain.errors import ServiceError
from app.key_verbs import add_verb
from app.settings import Settings
from tests import networks
from tests.keys import add_key, bearer, revoke_key
from tests.service import ROOT, Service

MODEL = networks.doubled_with_marker("access").SerializeToString()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with keys; each test makes its own."""
    data_dir = tmp_path_factory.mktemp("guarded") / "data"
    add_key(data_dir, "owner", "admin")
    running = Service(data_dir, "--no-worker").start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log


@pytest.fixture
def stranger(guarded: Service) -> Iterator[httpx.Client]:
    with guarded.client() as client:
        yield client


def known(service: Service, client: httpx.Client, key: str) -> None:
    """Wait until the service has noticed a new key."""
    service.eventually(lambda: client.get("/device", headers=bearer(key)).status_code not in (401, 429))


@pytest.fixture
def keys_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `jetforge keys …` over a folder of its own; exit status, standard output and error."""
    parser = argparse.ArgumentParser()
    add_verb(parser.add_subparsers(), lambda args: Settings(data_dir=args.data_dir))

    def run(*words: str) -> tuple[int, str, str]:
        try:
            args = parser.parse_args(["keys", *words, "--data-dir", str(tmp_path / "data")])
            status = int(args.func(args))
        except (SystemExit, ServiceError) as refused:
            status = 1
            print(refused.hint if isinstance(refused, ServiceError) else "", file=sys.stderr)
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    body: dict[str, Any] = answer.json()
    assert body["code"] == code and body["detail"] and body["hint"]
    return body


def test_without_a_key_only_health_and_the_documentation_answer(stranger: httpx.Client) -> None:
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"):
        assert stranger.get(path).status_code == 200, path
    for path in ("/jobs", "/engines", "/device", "/v2", "/nothing"):
        answer = stranger.get(path)
        refused(answer, 401, "key_missing")
        assert answer.headers["www-authenticate"] == 'Bearer realm="jetforge"'


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_a_key_opens_by_either_header(guarded: Service, stranger: httpx.Client, header: str) -> None:
    key = add_key(guarded.data_dir, f"either-{header}", "read")
    known(guarded, stranger, key)

    answer = stranger.get("/jobs", headers={header: f"Bearer {key}" if header == "Authorization" else key})

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "credentials",
    ["Basic amV0Zm9yZ2U6amV0Zm9yZ2U=", "Bearer", "jetforge_x", "Digest a=b"],
)
def test_credentials_of_another_kind_are_no_key(stranger: httpx.Client, credentials: str) -> None:
    answer = stranger.get("/jobs", headers={"Authorization": credentials})

    assert answer.status_code == 401


def test_a_read_key_cannot_build_and_is_told_which_role_can(guarded: Service, stranger: httpx.Client) -> None:
    key = add_key(guarded.data_dir, "reader", "read")
    known(guarded, stranger, key)

    answer = stranger.post("/jobs", files={"model": MODEL}, data={"name": "mine"}, headers=bearer(key))

    body = refused(answer, 403, "role_missing")
    assert "admin or build" in body["detail"] and "read" in body["detail"]
    assert stranger.get("/jobs", headers=bearer(key)).json()["jobs"] == []
    refused(stranger.delete("/engines/digits", headers=bearer(key)), 403, "role_missing")


def test_an_inference_key_neither_builds_nor_lists_jobs(guarded: Service, stranger: httpx.Client) -> None:
    key = add_key(guarded.data_dir, "camera", "infer")
    known(guarded, stranger, key)

    refused(stranger.get("/jobs", headers=bearer(key)), 403, "role_missing")
    refused(stranger.post("/models", content=MODEL, headers=bearer(key)), 403, "role_missing")
    refused(stranger.get("/engines/nothing/file", headers=bearer(key)), 403, "role_missing")
    missing = stranger.post("/infer/nothing", content=b"x", headers={**bearer(key), "Content-Type": "image/png"})
    refused(missing, 404, "engine_not_found")


def test_a_key_made_while_the_service_runs_opens_and_a_revoked_one_does_not(
    guarded: Service, stranger: httpx.Client
) -> None:
    key = add_key(guarded.data_dir, "short", "read")
    known(guarded, stranger, key)

    revoke_key(guarded.data_dir, "short")

    guarded.eventually(lambda: stranger.get("/jobs", headers=bearer(key)).status_code in (401, 429), within_s=5)


def test_an_expired_key_is_refused_and_says_so(guarded: Service, stranger: httpx.Client) -> None:
    over = datetime.now(timezone.utc) - timedelta(seconds=1)
    key = add_key(guarded.data_dir, "over", "read", expires_at=over)
    guarded.eventually(lambda: "expired" in stranger.get("/jobs", headers=bearer(key)).text)

    answer = stranger.get("/jobs", headers=bearer(key))

    refused(answer, 401, "key_expired")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_open_inference_clients_are_asked_too(guarded: Service, stranger: httpx.Client) -> None:
    key = add_key(guarded.data_dir, "triton", "infer")
    known(guarded, stranger, key)

    refused(stranger.get("/v2/models/nothing"), 401, "key_missing")
    assert stranger.get("/v2/models/nothing", headers=bearer(key)).status_code == 404
    refused(stranger.post("/v2/repository/models/nothing/unload", headers=bearer(key)), 403, "role_missing")


def test_on_loopback_nobody_is_asked_until_the_first_key_and_for_ever_after(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", "--no-worker").start()
    try:
        with service.client() as client:
            assert client.get("/jobs").status_code == 200

            key = add_key(service.data_dir, "first", "read")
            service.eventually(lambda: client.get("/jobs").status_code == 401)
            assert client.get("/jobs", headers=bearer(key)).status_code == 200

            revoke_key(service.data_dir, "first")
            service.eventually(lambda: client.get("/jobs", headers=bearer(key)).status_code in (401, 429))
            assert client.get("/jobs").status_code == 401
    finally:
        assert service.stop() == 0


def test_beyond_loopback_without_a_key_the_service_refuses_to_start_and_says_what_to_do(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "app",
        "serve",
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        "--data-dir",
        tmp_path / "data",
    ]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "jetforge keys add" in done.stderr and "--data-dir" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_shows_a_key_once_lists_it_and_revokes_it(
    tmp_path: Path, keys_verb: Callable[..., tuple[int, str, str]]
) -> None:
    _, made, told = keys_verb("add", "ci", "--role", "build", "--role", "read", "--expires-in", "30d")
    again, _, reason = keys_verb("add", "ci", "--role", "read")
    _, listed, _ = keys_verb("list", "--json")
    revoked, _, _ = keys_verb("revoke", "ci")
    revoked_again, _, missing = keys_verb("revoke", "ci")

    key = made.strip()
    assert key.startswith("jetforge_") and "\n" not in key and key not in told
    (entry,) = json.loads(listed)["keys"]
    assert (entry["name"], entry["roles"], entry["state"]) == ("ci", ["build", "read"], "live")
    assert entry["expires_at"] is not None and entry["last_used_at"] is None
    assert key not in listed
    assert not any(key.encode() in path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert (again, revoked, revoked_again) == (1, 0, 1)
    assert "Revoke it first" in reason and "keys list" in missing


def test_the_command_makes_no_database_unless_a_key_is_added_and_says_that_it_is_new(
    tmp_path: Path, keys_verb: Callable[..., tuple[int, str, str]]
) -> None:
    listed, _, reason = keys_verb("list")
    revoked, _, _ = keys_verb("revoke", "ci")
    was_made = (tmp_path / "data").exists()
    added, _, told = keys_verb("add", "ci", "--role", "read")
    _, _, told_again = keys_verb("add", "other", "--role", "read")

    assert (listed, revoked, was_made, added) == (1, 1, False, 0)
    assert "--data-dir" in reason
    assert str(tmp_path / "data") in told and "--data-dir" in told
    assert "--data-dir" not in told_again


@pytest.mark.parametrize(
    "words",
    [
        ("bad name", "--role", "read"),
        ("x", "--role", "king"),
        ("x",),
        ("x", "--role", "read", "--expires-in", "soon"),
        ("x", "--role", "read", "--expires-in", "999999d0"),
        ("x", "--role", "read", "--max-body-mib", "-1"),
        ("x", "--role", "read", "--requests-per-s", "nan"),
    ],
    ids=str,
)
def test_a_key_that_cannot_be_is_refused_by_the_command(
    keys_verb: Callable[..., tuple[int, str, str]], words: tuple[str, ...]
) -> None:
    status, made, reason = keys_verb("add", *words)

    assert (status, made) == (1, "")
    assert reason.strip()
