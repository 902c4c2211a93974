"""The table of roles: complete, as documented, and closed to what it does not name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount

from app import wiring
from app.access import policy
from app.access.routes import RULES, Rule, rule_of
from app.api.app import create_app
from app.api.services import Services
from app.domain.access import Role
from app.domain.errors import KeyMissing, RoleMissing, StartRefused
from app.settings import Settings
from tests.keys import add_key

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(data_dir=tmp_path / "data")
    wiring.prepare(settings)
    return settings


@pytest.fixture
def keys(settings: Settings) -> dict[Role, str]:
    """A key for each role."""
    return {role: add_key(settings.data_dir, role.value, role.value) for role in Role}


@pytest.fixture
def services(settings: Settings, keys: dict[Role, str]) -> Iterator[Services]:
    with wiring.connected_services(settings) as services:
        yield services


@pytest.fixture
def app(services: Services) -> FastAPI:
    return create_app(services)


def declared(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Method and path of every route, those of included routers too."""
    for route in routes:
        if isinstance(route, Mount):
            yield "GET", f"{route.path}/{{rest:path}}"
        elif (router := getattr(route, "original_router", None)) is not None:
            yield from declared(router.routes)
        else:
            for method in getattr(route, "methods", None) or ("WEBSOCKET",):
                yield method, getattr(route, "path")  # noqa: B009


def test_every_route_of_the_application_has_its_rule(app: FastAPI) -> None:
    ruled = {(rule.method, rule.path) for rule in RULES}
    found = {(method, path) for method, path in declared(app.routes) if method != "HEAD"}

    assert len(found) > 40
    assert found - ruled == set(), "name them in app/access/routes.py and docs/access.md, or they need the role admin"


async def test_a_refused_method_names_all_that_the_address_takes(app: FastAPI, keys: dict[Role, str]) -> None:
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 4000))
    headers = {"X-API-Key": keys[Role.ADMIN]}

    async with httpx.AsyncClient(transport=transport, base_url="http://jetson", headers=headers) as client:
        answer = await client.put("/jobs/0123456789abcdef")

    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET")


def test_every_operation_documents_its_roles_and_the_problems_it_can_answer(app: FastAPI) -> None:
    for path, item in app.openapi()["paths"].items():
        for method, operation in item.items():
            rule = rule_of(method.upper(), path)
            assert all(role.value in operation["description"] for role in rule.roles), path
            assert ("security" in operation) is not rule.is_open, path
            assert {"400", "404", "500", "503"} <= set(operation["responses"]), path
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert response["content"].keys() == {"application/problem+json"}, (path, status)


def test_no_request_has_two_rules() -> None:
    named = [(rule.method, rule.path) for rule in RULES]

    assert len(named) == len(set(named))


def test_the_documented_table_is_the_one_that_decides() -> None:
    groups: dict[tuple[str, ...], list[Rule]] = {}
    for rule in RULES:
        groups.setdefault(tuple(sorted(role.value for role in rule.roles)), []).append(rule)
    lines = [
        f"| {', '.join(roles) or 'nobody is asked'} | {', '.join(f'`{rule.method} {rule.path}`' for rule in rules)} |"
        for roles, rules in groups.items()
    ]
    text = (DOCS / "access.md").read_text()

    assert [line for line in lines if line not in text] == []


@pytest.mark.parametrize("path", ["/jobs/", "/jobs\n", "//jobs", "/JOBS", "/engines/a/b", "/v2/", "/../jobs", ""])
def test_an_address_that_is_not_quite_a_listed_one_needs_admin(path: str) -> None:
    assert rule_of("GET", path).roles == {Role.ADMIN}


async def test_a_route_that_nobody_listed_needs_admin(app: FastAPI, keys: dict[Role, str]) -> None:
    app.add_api_route("/later", lambda: {"secret": 1}, methods=["GET"])
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 4000))

    async with httpx.AsyncClient(transport=transport, base_url="http://jetson") as client:
        answers = {
            role: await client.get("/later", headers={"Authorization": f"Bearer {key}"}) for role, key in keys.items()
        }
        without = await client.get("/later")

    assert {role: answer.status_code for role, answer in answers.items()} == {
        Role.READ: 403,
        Role.INFER: 403,
        Role.BUILD: 403,
        Role.ADMIN: 200,
    }
    assert without.status_code == 401


@pytest.mark.parametrize("role", Role)
def test_a_role_opens_exactly_what_the_table_says(services: Services, keys: dict[Role, str], role: Role) -> None:
    headers = [(b"authorization", f"Bearer {keys[role]}".encode())]

    opened = {rule for rule in RULES if opens(services, rule, headers)}

    assert opened == {rule for rule in RULES if rule.is_open or role in rule.roles or role is Role.ADMIN}


def test_beyond_loopback_a_live_key_or_the_owners_word_is_wanted(settings: Settings, tmp_path: Path) -> None:
    far = settings.model_copy(update={"host": "0.0.0.0"})
    now = datetime.now(timezone.utc)
    with wiring.connected_keys(settings) as store:
        with pytest.raises(StartRefused):
            policy.refuse_open_door(far, store)
        policy.refuse_open_door(far.model_copy(update={"allow_anonymous": True}), store)

        add_key(settings.data_dir, "over", "admin", expires_at=now - timedelta(days=1))
        add_key(settings.data_dir, "gone", "admin", revoked_at=now)
        with pytest.raises(StartRefused):
            policy.refuse_open_door(far, store)

        add_key(settings.data_dir, "live", "read", expires_at=now + timedelta(days=1))
        policy.refuse_open_door(far, store)


@pytest.mark.parametrize(
    ("changes", "may_read", "may_build"),
    [
        ({}, False, False),
        ({"anonymous_roles": "read"}, True, False),
        ({"anonymous_roles": " read, build "}, True, True),
        ({"allow_anonymous": True}, True, True),
    ],
    ids=str,
)
def test_the_owner_decides_what_requests_without_a_key_may_do(
    settings: Settings, keys: dict[Role, str], changes: dict[str, Any], may_read: bool, may_build: bool
) -> None:
    with wiring.connected_services(settings.model_copy(update=changes)) as services:
        assert admits(services, "GET", "/jobs") is may_read
        assert admits(services, "POST", "/jobs") is may_build


def test_a_role_that_does_not_exist_is_refused_at_the_start(settings: Settings) -> None:
    with pytest.raises(StartRefused, match="king"):
        policy.of_settings(settings.model_copy(update={"anonymous_roles": "king"}))


def test_when_a_key_was_used_is_noted(settings: Settings, keys: dict[Role, str]) -> None:
    with wiring.connected_services(settings) as services:
        services.door.authorised("GET", "/jobs", [(b"x-api-key", keys[Role.READ].encode())], "192.0.2.7")

    with wiring.connected_keys(settings) as store:
        used = {key.name: key.last_used_at is not None for key in store.list()}
    assert used == {"read": True, "infer": False, "build": False, "admin": False}


def admits(services: Services, method: str, path: str) -> bool:
    try:
        services.door.authorised(method, path, [], "192.0.2.7")
    except KeyMissing:
        return False
    return True


def opens(services: Services, rule: Rule, headers: list[tuple[bytes, bytes]]) -> bool:
    try:
        services.door.authorised(rule.method, rule.path, headers, "192.0.2.7")
    except RoleMissing as refused:
        assert all(role.value in refused.detail for role in rule.roles)
        return False
    return True
