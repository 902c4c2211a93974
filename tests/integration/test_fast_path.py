"""The fast path leaves nothing out: door, counts and request ids are there for its requests as for all others.

Every request here is on it for certain; one that takes the long way fails its test.
"""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app import wiring
from app.access import policy
from app.access.keyring import KeyRing
from app.api.exchange import BODY, aligned
from app.api.fast_path import FastPath
from app.api.heads import Plan, parsed
from app.api.observed import RequestCounts
from app.api.services import Services
from app.api.shortcut import planned
from app.serving.pool import EnginePool
from app.serving.service import InferenceService
from app.serving.statistics import Totals
from app.settings import Settings
from tests.fakes import FakeEngine, Gate, engine_record, eventually, soon
from tests.keys import add_key, revoke_key

PLAIN, V2 = "/infer/{ref}", "/v2/models/{model}/infer"
ADDRESS = "192.0.2.7"
FOR_EVER_S = 1e9
RATE_PER_S = 0.001  # so low that no token comes back while a test runs; two may be taken at once


class Answer:
    """What one request was answered."""

    def __init__(self) -> None:
        self.status = 0  # not yet
        self.headers: dict[str, str] = {}
        self.body = b""
        self.withdraw: Callable[[], None] = lambda: None

    def __call__(self, status: int, lines: bytes, parts: Sequence[bytes | memoryview]) -> None:
        assert self.status == 0, "answered twice"
        assert lines.endswith(b"\r\n")
        fields = [line.partition(": ") for line in lines.decode().splitlines()]
        self.status, self.headers, self.body = status, {name: value for name, _, value in fields}, b"".join(parts)
        assert int(self.headers["content-length"]) == len(self.body)
        self.withdraw = lambda: None  # as a connection does

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


class Asker:
    """Asks the engine `net`, which doubles rows of two numbers, by the protocols that have a fast path."""

    def __init__(self, services: Services, keys: KeyRing, gate: Gate) -> None:
        self.services = services
        self.keys = keys
        self.gate = gate
        self.counts = RequestCounts()
        self._plans: dict[bytes, Plan] = {}

    def key(self, name: str, *roles: str, **fields: object) -> str:
        """A header with a new key, which the door knows."""
        key = add_key(self.services.settings.data_dir, name, *roles, **fields)
        self.keys.refresh()
        return f"Authorization: Bearer {key}"

    @property
    def told(self) -> Totals:
        """The engine's statistics."""
        return self.services.inference.statistics.of("net:1")

    async def ask(self, route: str, value: float, *headers: str) -> Answer:
        answer = await self.begin(route, value, *headers)
        await eventually(lambda: answer.status != 0)
        return answer

    async def begin(self, route: str, value: float, *headers: str) -> Answer:
        head, body = _plain(value, *headers) if route == PLAIN else _v2(value, *headers)
        if head not in self._plans:
            self._plans[head] = await self._planned(head, body)
        answer = Answer()
        begin = self._plans[head].begin
        assert begin is not None
        withdraw = begin(body, ADDRESS, answer)
        assert withdraw is not None, "it went the long way"
        answer.withdraw = withdraw
        return answer

    async def _planned(self, head: bytes, body: memoryview) -> Plan:
        """The plan of a head, when the engine is warm and the JSON header was seen once."""
        read = parsed(head)
        assert read is not None
        fast_path = FastPath(self.services.inference, self.services.door, self.counts)
        plan = planned(self.services, fast_path, read)
        assert plan is not None

        async def received() -> memoryview:
            return body

        response = await soon(plan.answer({BODY: received, "path": read.path}))
        assert response.status_code == 200, bytes(response.body)
        self.services.inference.statistics.forget("net:1")
        return plan


def _plain(value: float, *headers: str) -> tuple[bytes, memoryview]:
    kind = "application/octet-stream"
    lines = [f"Content-Type: {kind}", f"Accept: {kind}", *headers]
    return _head("/infer/net?shape=1x2", 8, lines), tensor(value).data.cast("B")


def _v2(value: float, *headers: str) -> tuple[bytes, memoryview]:
    shape = {"shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    text = json.dumps({"inputs": [{"name": "x", **shape}], "parameters": {"binary_data_output": True}}).encode()
    body = aligned(len(text) + 8, len(text))
    body[:] = text + tensor(value).tobytes()
    lines = [f"Inference-Header-Content-Length: {len(text)}", *headers]
    return _head("/v2/models/net/infer", len(body), lines), body.toreadonly()


def _head(target: str, length: int, lines: Sequence[str]) -> bytes:
    return "\r\n".join(
        [f"POST {target} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {length}", *lines, "", ""]
    ).encode()


def tensor(value: float) -> np.ndarray:
    return np.array([[value, value]], np.float32)


@pytest.fixture
async def asker(tmp_path: Path) -> AsyncIterator[Asker]:
    settings = Settings(data_dir=tmp_path / "data", address_requests_per_s=0)
    wiring.prepare(settings)
    gate = Gate(is_open=True)
    pool = EnginePool(lambda _: FakeEngine(gate=gate), budget_bytes=1000, keep_alive_s=0, contexts=1, queue_rows_max=8)
    inference = InferenceService(lambda *_: engine_record("net"), pool, found_for_s=FOR_EVER_S)
    with wiring.connected_services(settings) as services, wiring.connected_keys(settings) as store:
        keys = KeyRing(store)
        yield Asker(replace(services, inference=inference, door=policy.door(settings, keys)), keys, gate)
    gate.open()
    await soon(inference.close())


both = pytest.mark.parametrize("route", [PLAIN, V2])


@both
async def test_a_revoked_key_opens_no_more_from_the_next_request_on(asker, route):
    key = asker.key("camera", "infer")
    answer = await asker.ask(route, 3, key)
    assert (answer.status, answer.body[-8:]) == (200, tensor(6).tobytes())

    revoke_key(asker.services.settings.data_dir, "camera")
    asker.keys.refresh()
    refused = await asker.ask(route, 3, key)

    assert (refused.status, refused.code) == (401, "key_unknown")
    assert "invalid_token" in refused.headers["www-authenticate"]
    assert (await asker.ask(route, 3)).code == "key_missing"


@both
async def test_who_may_not_ask_gets_no_answer_and_has_no_run(asker, route):
    reader, tiny = asker.key("reader", "read"), asker.key("tiny", "infer", max_body_mib=0)
    page = "Sec-Fetch-Site: cross-site"

    answers = [await asker.ask(route, 3, header) for header in (reader, tiny, page)]
    foreign = await asker.ask(route, 3, asker.key("page", "infer"), page)

    assert [(one.status, one.code) for one in (*answers, foreign)] == [
        (403, "role_missing"),
        (413, "body_too_large"),
        (401, "key_missing"),
        (403, "cross_site_refused"),
    ]
    assert asker.told.requests == asker.told.failures == 0


@both
async def test_a_key_that_asks_too_often_is_told_when_to_come_back(asker, route):
    key = asker.key("eager", "infer", requests_per_s=RATE_PER_S)

    first, second = await asker.ask(route, 1, key), await asker.ask(route, 2, key)

    assert (first.status, second.status, second.code) == (200, 429, "rate_limited")
    assert int(second.headers["retry-after"]) > 1


@both
async def test_every_request_is_counted_by_its_route_and_in_the_statistics(asker, route):
    key = asker.key("camera", "infer")
    assert (await asker.ask(route, 1)).status == 401
    for value in range(3):
        assert (await asker.ask(route, value, key)).status == 200
    assert (await asker.ask(route, -1, key)).code == "execution_failed"

    assert asker.counts.answered == {(route, "POST", 200): 3, (route, "POST", 500): 1, (route, "POST", 401): 1}
    assert asker.counts.seconds[route].count == 5
    assert (asker.told.requests, asker.told.rows, asker.told.runs, asker.told.failures) == (3, 3, 3, 1)
    stages = {stage: of.count for stage, of in asker.told.stage_seconds.items()}
    assert stages == {"decode": 3, "preprocess": 0, "queue": 3, "compute": 3, "encode": 3}
    assert asker.told.total_ns >= asker.told.input_ns + asker.told.compute_ns + asker.told.output_ns > 0


@both
async def test_a_client_that_hangs_up_while_it_waits_harms_no_neighbour_and_leaves_no_lease(asker, route):
    key = asker.key("camera", "infer")
    await asker.ask(route, 0, key)
    asker.gate.shut()
    runs = len(asker.gate.runs)
    running = [await asker.begin(route, 1, key)]
    await asker.gate.entered(runs + 1)
    waiting = [await asker.begin(route, value, key) for value in (2, 3, 4)]
    (state,) = asker.services.inference.states()
    assert (state.leases, state.waiting) == (4, 3)

    for gone in (running[0], waiting[1]):
        gone.withdraw()
    asker.gate.open()
    await eventually(lambda: waiting[0].status == waiting[2].status == 200)

    assert [waiting[0].body[-8:], waiting[2].body[-8:]] == [tensor(4).tobytes(), tensor(8).tobytes()]
    assert asker.gate.runs[runs:] == [1, 2]  # who hung up while it waited is not run
    assert running[0].status == waiting[1].status == 0
    assert asker.counts.answered[(route, "POST", 499)] == 2
    (state,) = asker.services.inference.states()
    assert (state.leases, state.waiting) == (0, 0)


@both
async def test_a_request_goes_by_its_own_id_or_by_one_that_no_other_has(asker, route):
    key, own, mad = asker.key("camera", "infer"), "X-Request-ID: my-own.1", "X-Request-ID: two words"

    named = [await asker.ask(route, value, key, own) for value in (1, -1)]
    unnamed = [await asker.ask(route, value, key, *more) for value in (1, -1) for more in ((), (mad,))]

    assert [one.headers["x-request-id"] for one in named] == ["my-own.1", "my-own.1"]
    names = {one.headers["x-request-id"] for one in unnamed}
    assert len(names) == 4 and all(re.fullmatch("[0-9a-f]{16}", name) for name in names)
    for problem in (named[1], unnamed[2], unnamed[3]):
        assert json.loads(problem.body)["request_id"] == problem.headers["x-request-id"]


@both
async def test_a_request_that_is_over_leaves_nothing_for_the_cycle_collector(asker, route):
    key = asker.key("camera", "infer")
    await asker.ask(route, 1, key)
    gc.collect()
    gc.disable()
    try:
        answers = [weakref.ref(await asker.ask(route, value, key)) for value in (1, 2)]
        # Not at once: a context's thread that has just handed its results over may still name the request.
        await eventually(lambda: [one() for one in answers] == [None, None])
    finally:
        gc.enable()
