"""A thousand damaged uploads: each is refused with a code and a hint, or stored and then built or failed with them."""

from __future__ import annotations

import random
from typing import Any

import httpx

from tests.e2e.conftest import DIGITS
from tests.e2e.test_bad_input import stored
from tests.service import Service

MODELS = [(DIGITS / name).read_bytes() for name in ("digits.onnx", "digits.torchscript.pt", "digits.pt2")]
ARCHIVE = (DIGITS / "calibration.zip").read_bytes()
OPTIONS = {
    "precision": "fp32",
    "input_shapes": "image:1x1x8x8",
    "max_shapes": "16x1x8x8",
    "preprocess": '{"width": 8, "color": "gray"}',
    "labels": "a,b,c",
    "tolerance": '{"cosine": 0.9}',
    "timeout_s": "5",
    "simplify": "false",
    "opset": "17",
}
BUILT = 8  # accepted models that are built: the others would take the test an hour


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The bytes with something flipped, cut, doubled, swapped or made large."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        at = chance.randrange(max(1, len(out)))
        kind = chance.randrange(5)
        if kind == 0:
            out[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del out[at : at + chance.randrange(1, 200)]
        elif kind == 2:
            out[at:at] = out[at : at + chance.randrange(1, 200)]
        elif kind == 3:
            out[at : at + 4] = b"\xff\xff\xff\x7f"
        else:
            out = out[: max(1, at)]
    return bytes(out)


def is_answered_well(answer: httpx.Response) -> bool:
    if answer.status_code < 300:
        return True
    body = answer.json()
    return 400 <= answer.status_code < 500 and bool(body["code"] and body["detail"] and body["hint"])


def test_damaged_models_and_archives_are_refused_or_stored_and_leave_nothing_else(
    service: Service, client: httpx.Client
) -> None:
    chance = random.Random(1)
    before = stored(service)
    accepted: list[str] = []

    for number in range(700):
        kind, data = ("calibration", ARCHIVE) if number % 3 == 0 else ("model", chance.choice(MODELS))
        answer = client.post(f"/{kind}s", params={"wait": 0}, files={kind: mutated(data, chance)})
        assert is_answered_well(answer), (number, answer.status_code, answer.text)
        if answer.status_code == 201:
            accepted.append(f"/{kind}s/{answer.json()['id']}")

    assert len(stored(service) - before) <= len(set(accepted))
    builds = [address.removeprefix("/models/") for address in accepted if address.startswith("/models/")][:BUILT]
    for number, model in enumerate(dict.fromkeys(builds)):
        told = client.get(f"/models/{model}", params={"wait": 60}).json()
        assert told["inspection"] in ("done", "failed") and (told["facts"] is None) != (told["failure"] is None), told
        asked = {"name": f"mutant-{number}", "model_id": model, "timeout_s": "60", "simplify": "false"}
        job = service.ended(client, client.post("/jobs", data=asked).json()["id"])
        failure: dict[str, Any] = job["failure"] or {"code": "-", "message": "-", "hint": "-"}
        assert job["state"] == "succeeded" or all(failure[name] for name in ("code", "message", "hint")), job
    for address in dict.fromkeys(accepted):
        assert client.delete(address).status_code in (204, 409)
    assert client.get("/healthz").status_code == 200


def test_damaged_options_are_refused_or_taken(service: Service, client: httpx.Client, digits: dict[str, Any]) -> None:
    chance = random.Random(2)

    for number in range(300):
        options = dict(OPTIONS)
        for name in chance.sample(sorted(options), 2):
            options[name] = mutated(options[name].encode(), chance).decode("utf-8", "replace")
        if chance.random() < 0.2:
            options[chance.choice(("colour", "name ", "options"))] = mutated(b'{"precision": "fp32"}', chance).decode(
                "utf-8", "replace"
            )
        answer = client.post("/jobs", data={"name": "odd", "model_id": digits["model"], **options})
        assert is_answered_well(answer), (number, options, answer.text)
        if answer.status_code == 202:
            client.delete(f"/jobs/{answer.json()['id']}")

    assert client.get("/healthz").status_code == 200
