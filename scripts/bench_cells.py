"""What is measured in every round: each cell is one system under one load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench_raw import Order
from bench_systems import BareLoops, cpu_s
from load_generator import Kept, LoadGenerator
from numpy.typing import NDArray

WARM_S = 0.4  # before each slice, uncounted
BARE = "bare"  # loops of the runtime in-process, with the engine's file
BARE_UPLOAD = f"{BARE}, uploaded network"  # … with the network as it was uploaded, optimised by the runtime itself
KEPT_A_SLICE = 40  # answers, about, that are checked


@dataclass
class Found:
    """What all rounds found in one cell."""

    per_s: list[float] = field(default_factory=list)  # of each round
    latencies_ms: list[NDArray[np.float64]] = field(default_factory=list)
    failed: int = 0
    checked: int = 0
    wrong: int = 0
    busy: float = 0  # of the generator's core, at most
    cpu_us: list[float] = field(default_factory=list)  # of the server for each answer, of each round

    def described(self) -> dict[str, Any]:
        every_ms = np.concatenate([*self.latencies_ms, np.zeros(0)])
        p50_ms, p99_ms = (float(value) for value in np.percentile(every_ms, (50, 99))) if len(every_ms) else (0.0, 0.0)
        return {
            "per_s": float(np.median(self.per_s)),
            "per_s_of_rounds": [round(value, 2) for value in self.per_s],
            "p50_ms": round(p50_ms, 4),
            "p99_ms": round(p99_ms, 4),
            "server_cpu_us": round(min(self.cpu_us), 1) if self.cpu_us else None,
            "failed": self.failed,
            "checked": self.checked,
            "wrong": self.wrong,
            "generator_busy": round(self.busy, 3),
        }


@dataclass(frozen=True)
class Cell:
    """One system under one load."""

    case: str
    system: str
    clients: int  # loops at once, for bare loops
    measure: Callable[[], None]
    found: Found


def loaded(
    generator: LoadGenerator,
    key: tuple[str, str, int],
    server: tuple[int, int],
    requests: Sequence[Path],
    seconds: float,
    is_right: Callable[[Kept], bool] | None,
) -> Cell:
    """A server under so many clients.

    Args:
        key: case, system, clients.
        server: its port and its process.
        is_right: checks a kept answer; None: the server computes nothing.
    """
    found = Found()

    def measure() -> None:
        per_s = found.per_s[-1] if found.per_s else 1000.0  # at first a guess
        keep_every = max(1, int(per_s * seconds / KEPT_A_SLICE))
        before_s = cpu_s(server[1])
        load = generator.run(server[0], requests, key[2], seconds, warm_s=WARM_S, keep_every=keep_every)
        found.cpu_us.append((cpu_s(server[1]) - before_s) / max(load.finished, 1) * 1e6)
        found.per_s.append(load.per_s)
        found.latencies_ms.append(load.latencies_ms)
        found.failed += load.failed
        found.busy = max(found.busy, load.busy)
        if is_right is not None:
            found.checked += len(load.kept)
            found.wrong += sum(not is_right(kept) for kept in load.kept)

    return Cell(*key, measure, found)


def bare(loops: BareLoops, case: str, system: str, order: Order) -> Cell:
    """A bare loop."""
    found = Found()

    def measure() -> None:
        per_s, latencies_ms = loops.run(order)
        found.per_s.append(per_s)
        found.latencies_ms.append(latencies_ms)

    return Cell(case, system, order.threads, measure, found)


def run_rounds(cells: Sequence[Cell], rounds: int, tell: Callable[[str], None]) -> None:
    """Measure every cell once a round, every other round backwards: what drifts, drifts for all."""
    for number in range(rounds):
        for cell in cells if number % 2 == 0 else reversed(cells):
            cell.measure()
        tell(f"round {number + 1} of {rounds}")
