"""A service under load while its engines come and go: no wrong answer, no failure, no growth; see scripts/soak."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from soak_engines import SWAPPED, Truth, first_engines, version
from soak_fast import SMALL, FastClients, ReplicaUse
from soak_traffic import ANNOUNCED, Tally, ask_on

from tests.service import Service, family_bytes

BUDGET_MIB = 30  # of warm engines: some of replicas' copies fit, but not all, so that engines and copies are evicted
ACT_EVERY_S = 0.3  # loads and unloads
SWAP_EVERY_S = 8.0  # new versions
BUILD_S = 120.0
VERSIONS_KEPT = 2
FAST_CLIENTS = 6  # more than there are replicas: those take a connection where others are as busy
WARM_SHARE_MAX, WARM_S_MAX = 0.4, 90.0  # of the time: what memory is compared with comes after
GROWTH_SHARE, GROWTH_MIB = 0.05, 24.0  # allowed; the larger one counts


@dataclass
class Soaked:
    """What was done to the service, and how it fared, beside the answers."""

    acts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    memory_mib: list[tuple[float, float]] = field(default_factory=list)  # seconds since the begin; with replicas
    replicas: ReplicaUse = field(default_factory=ReplicaUse)


def main() -> int:
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="jetforge-soak-") as folder:
        service = Service(Path(folder) / "data", engine_memory_mib=str(BUDGET_MIB), keep_alive_s="20").start()
        try:
            report = asyncio.run(soaked(service, args.minutes * 60, args.clients, args.seed))
        finally:
            service.stop()
        if "Traceback" in service.log:
            report["problems"].append("the service's log has a traceback")
            print(service.log[-5000:], file=sys.stderr)
    report["is_passed"] = not report["problems"]
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))
    print(json.dumps({name: value for name, value in report.items() if name != "memory_samples"}, indent=1))
    return 0 if report["is_passed"] else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the report here")
    return parser.parse_args()


async def soaked(service: Service, seconds: float, clients: int, seed: int) -> dict[str, Any]:
    """Load the service for so long; the report, whose problems are empty when all was as promised."""
    tally, found, ends = Tally(), Soaked(), asyncio.Event()
    truths = await _published(service)
    fast = FastClients(service.url, truths[SMALL], FAST_CLIENTS, seed)
    asking = [
        asyncio.create_task(ask_on(service.url, truths, tally, ends, seed * 1000 + number)) for number in range(clients)
    ]
    acting = [
        asyncio.create_task(work)
        for work in (
            _swap(service, truths, fast, found, ends),
            _act(service, found, ends, seed),
            _watch(service, found, ends),
        )
    ]
    await asyncio.wait({*asking, *acting}, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    ends.set()
    done, hanging = await asyncio.wait({*asking, *acting}, timeout=BUILD_S)
    for task in hanging:
        task.cancel()
    tally.add(await asyncio.to_thread(fast.stop))
    found.problems += [f"a task broke off: {task.exception()!r}" for task in done if task.exception()]
    if hanging:
        found.problems.append(f"{len(hanging)} requests or builds were still under way after {BUILD_S:g} s")
    return _report(tally, found, seconds, clients)


def _report(tally: Tally, found: Soaked, seconds: float, clients: int) -> dict[str, Any]:
    before_mib, after_mib = _memory(found.memory_mib, seconds)
    allowed_mib = max(GROWTH_MIB, GROWTH_SHARE * before_mib)
    problems = [*found.problems, *tally.problems, *found.replicas.problems()]
    if after_mib - before_mib > allowed_mib:
        problems.append(f"memory grew by {after_mib - before_mib:.1f} MiB after warm-up; {allowed_mib:.1f} are allowed")
    if not (sum(tally.right.values()) and tally.cancelled and found.acts["swapped"] and found.acts["unloaded"]):
        problems.append("the run was too short: not everything has happened")
    return {
        "seconds": seconds,
        "clients": clients,
        "right": dict(tally.right) | {"together": sum(tally.right.values())},
        "wrong": tally.wrong,
        "failed": tally.failed,
        "announced_503": dict(tally.refused),
        "cancelled": tally.cancelled,
        "versions_that_answered": len(tally.versions),
        "acts": dict(found.acts),
        "replicas": found.replicas.report(),
        "memory_mib": {"after_warm_up": round(before_mib, 1), "at_the_end": round(after_mib, 1)},
        "memory_samples": [(round(at, 1), round(mib, 1)) for at, mib in found.memory_mib],
        "problems": problems,
    }


def _memory(samples: list[tuple[float, float]], seconds: float) -> tuple[float, float]:
    """Median resident memory of the tenth after warm-up and of the last tenth, in MiB."""
    warm_s = min(WARM_SHARE_MAX * seconds, WARM_S_MAX)
    later = [mib for at, mib in samples if at >= warm_s] or [mib for _, mib in samples]
    tenth = max(1, len(samples) // 10)
    return statistics.median(later[:tenth]), statistics.median(later[-tenth:])


# --- what happens to the service meanwhile ---------------------------------------------------------------------------


async def _published(service: Service) -> dict[str, Truth]:
    """Build the first engines; the truths of the soak."""
    truths = first_engines()
    async with _client(service) as client:
        for name, truth in truths.items():
            await _built(client, name, truth)
    truths[f"{SWAPPED}:1"] = truths.pop(SWAPPED)
    return truths


async def _built(client: httpx.AsyncClient, name: str, truth: Truth) -> str:
    answer = await client.post("/jobs", files={"model": ("model.onnx", truth.model)}, data={"name": name})
    answer.raise_for_status()
    end_s = time.monotonic() + BUILD_S
    job = answer.json()
    while job["state"] in ("queued", "running") and time.monotonic() < end_s:
        job = (await client.get(f"/jobs/{job['id']}", params={"wait": 30})).json()
    if job["state"] != "succeeded":
        raise RuntimeError(f"{name} was not built: {job['failure'] or job['state']}")
    return str(job["engine"])


async def _swap(
    service: Service, truths: dict[str, Truth], fast: FastClients, found: Soaked, ends: asyncio.Event
) -> None:
    """Publish one version after another; unload and delete those that are too old."""
    number = 1
    async with _client(service) as client:
        while not await _over(ends, SWAP_EVERY_S if number > 1 else 1):
            number += 1
            truths[f"{SWAPPED}:{number}"] = version(number)  # before anybody can see it
            ref = await _built(client, SWAPPED, truths[f"{SWAPPED}:{number}"])
            if ref != f"{SWAPPED}:{number}":
                raise RuntimeError(f"the next version is {ref}, not {number}")
            fast.published(number)
            found.acts["swapped"] += 1
            if number > VERSIONS_KEPT:
                old = f"{SWAPPED}:{number - VERSIONS_KEPT}"
                await _done(client.post(f"/engines/{old}/unload"), found, "unloaded")
                await _done(client.delete(f"/engines/{old}"), found, "deleted")


async def _act(service: Service, found: Soaked, ends: asyncio.Event, seed: int) -> None:
    """Load and unload at random."""
    chance = random.Random(seed)
    async with _client(service) as client:
        while not await _over(ends, ACT_EVERY_S):
            name = chance.choice(["small", "residual", "pictures", SWAPPED])
            if chance.random() < 0.5:
                await _done(client.post(f"/engines/{name}/unload"), found, "unloaded")
            else:
                keep_alive_s = chance.choice([0, 1, 5])
                await _done(client.post(f"/engines/{name}/load?keep_alive_s={keep_alive_s}"), found, "loaded")


async def _done(call: Any, found: Soaked, what: str) -> None:
    answer = await call
    code = "" if answer.status_code < 300 else str(answer.json().get("code"))
    if not code:
        found.acts[what] += 1
    elif code in ANNOUNCED | {"in_use"}:
        found.acts[f"{code} instead of {what}"] += 1
    else:
        found.problems.append(f"{answer.request.method} {answer.request.url.path}: {answer.text[:300]}")


async def _watch(service: Service, found: Soaked, ends: asyncio.Event) -> None:
    assert service.process is not None
    begun_s = time.monotonic()
    async with _client(service) as client:
        while not await _over(ends, 0.5):
            taken = family_bytes(service.process.pid, *service.nursery_pids(), *service.replica_pids())
            found.memory_mib.append((time.monotonic() - begun_s, taken / 2**20))
            found.replicas.add((await client.get("/metrics")).raise_for_status().text)


async def _over(ends: asyncio.Event, seconds: float) -> bool:
    """Wait so long, or until the end; whether it is the end."""
    await asyncio.wait({waiting := asyncio.ensure_future(ends.wait())}, timeout=seconds)
    waiting.cancel()
    return ends.is_set()


def _client(service: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=service.url, timeout=BUILD_S, trust_env=False)


if __name__ == "__main__":
    sys.exit(main())
