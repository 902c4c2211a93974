"""What was found as ratios of one run, beside the targets.

The targets are set against Triton's C++ server with its ONNX Runtime backend, which cannot be assumed to be here.
They are carried over by what Triton itself reached of the same references on a machine of four cores, in the
table below; a bare loop and a bare echo can be measured anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from bench_cells import Found

Results = Mapping[tuple[str, str, int], Found]  # by case, system, clients

# Requests a second on that machine, at 1, 8 and 32 clients.
CLIENTS = (1, 8, 32)
TRITON_TINY = dict(zip(CLIENTS, (5_131, 25_556, 44_217), strict=True))
ECHO_TINY = dict(zip(CLIENTS, (11_674, 41_263, 41_383), strict=True))
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


def goals(results: Results, memory_mib: Mapping[str, float], clients: tuple[int, ...]) -> list[Goal]:
    """Every target that this run can judge."""
    found = [*_resnet(results, clients), *_tiny(results, clients), *_images(results, clients)]
    if 8 in clients:
        for case in ("tiny", "resnet18", "resnet18-u8", "jpeg"):
            described = results[case, "/infer" if case == "jpeg" else "v2", 8].described()
            value = described["p99_ms"] / max(described["p50_ms"], 1e-9)
            found.append(Goal(f"{case}, 8 clients: p99 / p50", value, SPREAD, is_at_most=True))
    for case, mib in TRITON_MIB.items():
        what = f"{case}: resident memory after load by {clients[-1]} clients, MiB (Triton's {mib} + {MORE_MIB})"
        found.append(Goal(what, memory_mib[case], mib + MORE_MIB, is_at_most=True))
    return found


def _resnet(results: Results, clients: tuple[int, ...]) -> list[Goal]:
    found = []
    for count in clients:
        served = results["resnet18", "v2", count]
        if count == 1:
            wanted = AHEAD * TRITON_RESNET_1 / BARE_RESNET_1
            what = "resnet18, 1 client: of the best bare loop of one run at a time (Triton's share × 1.05)"
            found.append(Goal(what, ratio(served, _best(results, "resnet18", loops=1)), wanted))
        else:
            what = f"resnet18, {count} clients: of the best bare loop"
            found.append(Goal(what, ratio(served, _best(results, "resnet18")), OF_BEST))
    return found


def _tiny(results: Results, clients: tuple[int, ...]) -> list[Goal]:
    found = []
    for count in clients:
        of_echo = ratio(results["tiny", "v2", count], results["tiny", "echo", count])
        if count in (8, 32):
            wanted = TIMES_PYTHON * PYTHON_TINY[count] / ECHO_TINY[count]
            found.append(Goal(f"tiny, {count} clients: of the bare echo (3 × the best Python server)", of_echo, wanted))
        if count in CLIENTS:
            wanted = TRITON_TINY[count] / ECHO_TINY[count]
            kind = "Triton" if count == 1 else "Triton, the stretch goal"
            found.append(Goal(f"tiny, {count} client(s): of the bare echo ({kind})", of_echo, wanted))
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


def _best(results: Results, case: str, loops: int | None = None) -> Found:
    """The fastest bare loop; with `loops`, of those with so many runs of one row at once."""
    bare = [
        found
        for (of, system, count), found in results.items()
        if of == case
        and system.startswith("bare")
        and (loops is None or (count == loops and system.endswith("batch 1")))
    ]
    return max(bare, key=lambda found: float(np.median(found.per_s)))


def ratio(served: Found, of: Found) -> float:
    """The median of the ratios of the rounds: both were measured within one round."""
    return float(np.median([mine / max(other, 1e-9) for mine, other in zip(served.per_s, of.per_s, strict=True)]))
