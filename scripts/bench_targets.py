"""What was found as ratios of one run, beside the targets.

The targets are set against Triton's C++ server with ONNX Runtime behind it. Where that server is not in the run, they
are carried over by what it reached of the same references on a machine of four cores, in the table below; a bare loop
and a bare echo can be measured anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from bench_cells import BARE, BARE_UPLOAD, Found

Results = Mapping[tuple[str, str, int], Found]  # by case, system, clients

# Requests a second on that machine, at 1, 8 and 32 clients.
CLIENTS = (1, 8, 32)
TRITON_TINY = dict(zip(CLIENTS, (5_131, 25_556, 44_217), strict=True))
ECHO_TINY = dict(zip(CLIENTS, (11_674, 41_263, 41_383), strict=True))
PYTHON_PROCESSES = 3
PYTHON_TINY = dict(zip(CLIENTS, (3_185, 10_556, 10_167), strict=True))  # KServe, the best that Python fronts
TRITON_RESNET_1, BARE_RESNET_1 = 133, 128  # one client, one thread of requests: of another run
TRITON_MIB = {"tiny": 59, "resnet18": 326}
AHEAD, OF_BEST, TIMES_PYTHON, OF_IMAGE_LOOP, SPREAD, MORE_MIB = 1.05, 0.95, 3, 0.9, 2.0, 150


@dataclass(frozen=True)
class Goal:
    """One ratio and what it should be."""

    what: str
    value: float
    wanted: float
    is_at_most: bool = False

    @property
    def is_met(self) -> bool:
        return self.value <= self.wanted if self.is_at_most else self.value >= self.wanted


def goals(results: Results, memory_mib: Mapping[str, float], clients: tuple[int, ...], cores: int) -> list[Goal]:
    """Every target that this run can judge.

    Args:
        cores: of the servers.
    """
    has_triton = any(_is_triton(system) for _, system, _ in results)
    found = _of_the_best_loop(results, clients)
    if cores >= PYTHON_PROCESSES:  # which had a processor each
        found += _times_python(results, clients)
    found += _beside_triton(results, clients) if has_triton else _carried_over(results, clients)
    found += _images(results, clients)
    if 8 in clients:
        for case in ("tiny", "resnet18", "resnet18-u8", "jpeg"):
            described = results[case, "/infer" if case == "jpeg" else "v2", 8].described()
            value = described["p99_ms"] / max(described["p50_ms"], 1e-9)
            found.append(Goal(f"{case}, 8 clients: p99 / p50", value, SPREAD, is_at_most=True))
    for case, elsewhere_mib in TRITON_MIB.items():
        mib = memory_mib.get(f"Triton, {case}", elsewhere_mib)
        what = f"{case}: resident memory after load by {clients[-1]} clients, MiB (Triton's {mib:.0f} + {MORE_MIB})"
        found.append(Goal(what, memory_mib[case], mib + MORE_MIB, is_at_most=True))
    return found


def _of_the_best_loop(results: Results, clients: tuple[int, ...]) -> list[Goal]:
    """Of ONNX Runtime with the uploaded network; and, harder, with the engine that the build made of it."""
    return [
        Goal(
            f"resnet18, {count} clients: of the best bare loop of {what}",
            ratio(results["resnet18", "v2", count], _best(results, "resnet18", kind)),
            OF_BEST,
        )
        for kind, what in ((BARE_UPLOAD, "the uploaded network"), (BARE, "it and of the engine"))
        for count in clients
        if count > 1  # one run at a time is not the best of the loops
    ]


def _times_python(results: Results, clients: tuple[int, ...]) -> list[Goal]:
    return [
        Goal(
            f"tiny, {count} clients: of the bare echo (3 × the best Python server)",
            ratio(results["tiny", "v2", count], results["tiny", "echo", count]),
            TIMES_PYTHON * PYTHON_TINY[count] / ECHO_TINY[count],
        )
        for count in clients
        if count in (8, 32)
    ]


def _beside_triton(results: Results, clients: tuple[int, ...]) -> list[Goal]:
    """Of Triton in this run, in the way that was the fastest with so many clients."""
    found = []
    for case, wanted in (("tiny", 1.0), ("resnet18", AHEAD)):
        for count in clients:
            tritons = [
                of
                for (name, system, asked), of in results.items()
                if (name, asked) == (case, count) and _is_triton(system)
            ]
            best = max(tritons, key=lambda of: float(np.median(of.per_s)))
            kind = ", the stretch goal" if case == "tiny" and count > 1 else ""
            found.append(
                Goal(f"{case}, {count} client(s): of Triton{kind}", ratio(results[case, "v2", count], best), wanted)
            )
    return found


def _is_triton(system: str) -> bool:
    return system.startswith("Triton")


def _carried_over(results: Results, clients: tuple[int, ...]) -> list[Goal]:
    found = []
    for count in (count for count in clients if count in CLIENTS):
        of_echo = ratio(results["tiny", "v2", count], results["tiny", "echo", count])
        kind = "Triton" if count == 1 else "Triton, the stretch goal"
        wanted = TRITON_TINY[count] / ECHO_TINY[count]
        found.append(Goal(f"tiny, {count} client(s): of the bare echo ({kind})", of_echo, wanted))
    if 1 in clients:
        what = "resnet18, 1 client: of the best bare loop of one run at a time (Triton's share × 1.05)"
        of_loop = ratio(results["resnet18", "v2", 1], _best(results, "resnet18", BARE_UPLOAD, loops=1))
        found.append(Goal(what, of_loop, AHEAD * TRITON_RESNET_1 / BARE_RESNET_1))
    return found


def _images(results: Results, clients: tuple[int, ...]) -> list[Goal]:
    loops = {count: _best(results, "jpeg", loops=1 if count == 1 else None) for count in clients}
    return [
        Goal(
            f"jpeg, {count} client(s): of the bare loop decode + recipe + engine",
            ratio(results["jpeg", "/infer", count], loop),
            OF_IMAGE_LOOP,
        )
        for count, loop in loops.items()
    ]


def _best(results: Results, case: str, kind: str = BARE, loops: int | None = None) -> Found:
    """The fastest bare loop of a kind; with `loops`, of those with so many runs of one row at once."""
    bare = [
        found
        for (of, system, count), found in results.items()
        if of == case and system.startswith(kind) and (loops is None or (count == loops and system.endswith("batch 1")))
    ]
    return max(bare, key=lambda found: float(np.median(found.per_s)))


def ratio(served: Found, of: Found) -> float:
    """The median of the ratios of the rounds: both were measured within one round."""
    return float(np.median([mine / max(other, 1e-9) for mine, other in zip(served.per_s, of.per_s, strict=True)]))
