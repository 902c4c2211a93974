"""Chaos: faults in random order while clients upload, build and infer; then everything promised is looked for.

Exit status 0 only when no accepted job was lost, no answer was wrong, no damaged file was served and the database is
whole.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from chaos_clients import HEADERS, ROW, Clients, Ledger

from tests.service import Service

PAUSE_S = 2.0  # between two faults, for the clients to get something done
HEAL_S = 300.0  # for everything accepted to end
FULL_S = 3.0
# Reasons for which a fault may fail a job; all else is a fault of the service.
FAILURES = {"build_killed", "worker_lost", "disk_full", "source_damaged", "storage_unwritable", "build_crashed"}


@dataclass
class Report:
    seed: int
    rounds: int
    disk: str
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        lines = [f"{self.rounds} faults, seed {self.seed}, on {self.disk}.", "", "| fault | times |", "|---|---|"]
        lines += [f"| {fault} | {count} |" for fault, count in sorted(self.faults.items())]
        lines += ["", "| at the end | |", "|---|---|"]
        lines += [f"| {what} | {figure} |" for what, figure in self.figures.items()]
        lines += ["", *(f"- PROBLEM: {problem}" for problem in self.problems)]
        return "\n".join(lines).rstrip() + "\n"


class Faults:
    """What can go wrong with a service on a device."""

    def __init__(self, service: Service, disk: Path | None, chance: random.Random) -> None:
        self._service = service
        self._disk = disk
        self._chance = chance
        self.all: list[Callable[[], bool]] = [
            self.kill_child,
            self.kill_worker,
            self.kill_replica,
            self.kill_server,
            self.restart_server,
            self.damage_engine,
            self.cut_engine,
            self.damage_model,
            *([self.fill_disk] if disk is not None else []),
        ]

    # Each says whether it found something to hurt.

    def kill_child(self) -> bool:
        children = [pid for pid, words in _processes() if "app.build" in words and str(self._service.data_dir) in words]
        return any(_killed(pid) for pid in children[:1])

    def kill_worker(self) -> bool:
        return _killed(self._service.worker_pid())

    def kill_replica(self) -> bool:
        return any(_killed(pid) for pid in self._service.replica_pids()[:1])

    def kill_server(self) -> bool:
        self._service.kill()
        time.sleep(self._chance.uniform(0, 1))
        self._service.start()
        return True

    def restart_server(self) -> bool:
        self._service.stop()
        self._service.start()
        return True

    def fill_disk(self) -> bool:
        assert self._disk is not None
        ballast = self._disk / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 18)):
                pass
        time.sleep(FULL_S)
        ballast.unlink()
        return True

    def damage_engine(self) -> bool:
        """Change one byte of the newest engine of a name, which is then unloaded, so that its file is read again."""
        return self._hurt("SELECT name, blob FROM engines ORDER BY random() LIMIT 1", _change_a_byte)

    def cut_engine(self) -> bool:
        return self._hurt("SELECT name, blob FROM engines ORDER BY random() LIMIT 1", _cut)

    def damage_model(self) -> bool:
        return self._hurt("SELECT NULL, digest FROM models ORDER BY random() LIMIT 1", _change_a_byte)

    def _hurt(self, query: str, hurt: Callable[[Path], None]) -> bool:
        found = _asked(self._service, query)
        if not found:
            return False
        name, digest = found[0]
        path = stored(self._service, digest)
        if not path.is_file():
            return False
        hurt(path)
        if name is not None:
            with suppress(httpx.HTTPError), self._service.client() as client:
                client.post(f"/engines/{name}/unload")
        return True


def run(folder: Path, *, rounds: int, seed: int, disk: Path | None) -> Report:
    chance = random.Random(seed)
    report = Report(seed, rounds, "a file system of its own that can be filled" if disk else "an ordinary disk")
    service = Service((disk or folder) / "data", min_free_mib="0", heartbeat_s="1", lost_after_s="5").start()
    clients = Clients(service, seed)
    faults = Faults(service, disk, chance)
    try:
        clients.start()
        _hurt_again_and_again(faults, chance, report, clients.ledger)
        clients.stop()
        _settled(service, clients.ledger, report)
    finally:
        clients.stop()
        service.kill()
    report.problems += [f"{what} ({times} times)" for what, times in clients.ledger.wrong.items()]
    report.figures |= dict(sorted(clients.ledger.counts.items()))
    return report


def _hurt_again_and_again(faults: Faults, chance: random.Random, report: Report, ledger: Ledger) -> None:
    _answered_again(ledger, report)
    done, longest_s = 0, 0.0
    while done < report.rounds:
        time.sleep(PAUSE_S)
        fault = chance.choice(faults.all)
        if not fault():
            continue
        done += 1
        report.faults[fault.__name__.replace("_", " ")] += 1
        print(f"{time.strftime('%H:%M:%S')} {done}/{report.rounds} {fault.__name__}", file=sys.stderr, flush=True)
        longest_s = max(longest_s, _answered_again(ledger, report))
    report.figures["longest until right answers came again"] = f"{longest_s:.1f} s"


def _answered_again(ledger: Ledger, report: Report) -> float:
    """Wait for the next right answers; the seconds until then."""
    before, started = ledger.counts["answers checked"], time.monotonic()
    while ledger.counts["answers checked"] == before:
        if time.monotonic() - started > HEAL_S:
            report.problems.append(f"no answer came within {HEAL_S:g} s")
            break
        time.sleep(0.05)
    return time.monotonic() - started


# --- what was promised ------------------------------------------------------------------------------------------------


def _settled(service: Service, ledger: Ledger, report: Report) -> None:
    """Let everything end, then look for every accepted job and ask every engine."""
    with service.client() as client:
        ended = Counter(_judged_job(service, client, job, report) for job in ledger.accepted)
        report.figures["accepted jobs"] = len(ledger.accepted)
        report.figures["of them ended"] = ", ".join(f"{state} {count}" for state, count in sorted(ended.items()))
        asked = Counter(_judged_engine(client, job, ledger, report) for job in ledger.accepted)
        report.figures["engines asked once more"] = ", ".join(f"{what} {n}" for what, n in sorted(asked.items()))
    service.stop()
    verdict = _asked(service, "PRAGMA integrity_check")[0][0]
    report.figures["database"] = verdict
    if verdict != "ok":
        report.problems.append(f"the database: {verdict}")
    if "Traceback" in service.log:
        report.problems.append(f"a traceback in the log: {service.log.partition('Traceback')[2][:1500]}")


def _judged_job(service: Service, client: httpx.Client, job: str, report: Report) -> str:
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        answer = client.get(f"/jobs/{job}")
        if answer.status_code == 404:
            return True
        found.update(answer.json())
        return found["state"] in ("succeeded", "failed", "cancelled")

    service.eventually(has_ended, HEAL_S)
    if not found:
        report.problems.append(f"the accepted job {job} is gone")
        return "lost"
    if found["state"] == "failed" and found["failure"]["code"] not in FAILURES:
        report.problems.append(f"job {job}: {found['failure']}")
    return str(found["state"] if found["state"] != "failed" else f"failed ({found['failure']['code']})")


def _judged_engine(client: httpx.Client, job: str, ledger: Ledger, report: Report) -> str:
    """Ask the very engine of the job: right, or refused by name, never wrong."""
    ref = client.get(f"/jobs/{job}").json()["engine"]
    if ref is None:
        return "never built"
    x = np.arange(1, ROW + 1, dtype=np.float32)
    answer = client.post(f"/infer/{ref}", content=x.tobytes(), headers=HEADERS, params={"shape": f"1x{ROW}"})
    if answer.status_code == 200:
        if not np.array_equal(np.frombuffer(answer.content, np.float32), x * ledger.accepted[job][1]):
            report.problems.append(f"{ref} answers wrongly")
        return "right"
    code = str(answer.json()["code"])
    if answer.status_code not in (503, 404):
        report.problems.append(f"{ref}: {answer.status_code} {code}")
    return f"refused ({code})"


# --- helpers ----------------------------------------------------------------------------------------------------------


def stored(service: Service, digest: str) -> Path:
    name = digest.partition(":")[2]
    return service.data_dir / "artefacts" / "objects" / name[:2] / name


def _asked(service: Service, query: str) -> list[Any]:
    with closing(sqlite3.connect(service.data_dir / "jetforge.db", timeout=30)) as connection:
        return connection.execute(query).fetchall()


def _change_a_byte(path: Path) -> None:
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)


def _processes() -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _killed(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[Path | None]:
    """A file system of that size; None where none can be mounted."""
    place = folder / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(place)]
    mounted = size_mib > 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=False)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=30, help="faults (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the faults (%(default)s)")
    parser.add_argument("--disk-mib", type=int, default=128, help="size of the disk that is filled; 0: an ordinary one")
    parser.add_argument("--out", type=Path, help="write the report there")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, small_disk(Path(folder), asked.disk_mib) as disk:
        report = run(Path(folder), rounds=asked.rounds, seed=asked.seed, disk=disk)
    text = report.markdown()
    print(text)
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
