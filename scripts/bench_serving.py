"""The service under load, in one interleaved run with what it is compared with; see scripts/bench."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bench_cases
import bench_systems
import numpy as np
import onnxruntime
from bench_cases import Case, JpegCase
from bench_cells import BARE, BARE_UPLOAD, WARM_S, Cell, bare, loaded, run_rounds
from bench_raw import Order
from bench_report import rendered
from bench_systems import BareLoops, asgi, bare_loops, engine_file, pid_of, port_of, resident_mib
from bench_targets import Goal, Results, goals
from bench_triton import Triton, Way, ways
from load_generator import LoadGenerator, post
from pydantic import TypeAdapter

from app.backends.cpu import cpu_name
from app.domain.preprocess import Preprocess


def main() -> int:
    args = _arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("The benchmark needs two processors at least: one is the load generator's.")
    servers = set(cores[: min(args.server_cores or len(cores) - 1, len(cores) - 1)])
    with tempfile.TemporaryDirectory(prefix="jetforge-bench-") as folder, ExitStack() as opened:
        bench = Bench(args, Path(folder), servers, cores[-1], opened)
        report = bench.report()
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))
    print(rendered(report))
    return 0 if report["is_sound"] else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round with a small ResNet: does it all work?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="of one slice (tiny network: half)")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--cases", default="tiny,resnet18,resnet18-u8", help="fewer: quicker, and without the goals")
    parser.add_argument("--server-cores", type=int, default=0, help="0: all but the load generator's")
    parser.add_argument("--granian", type=Path, help="also measure granian: a folder filled by pip install --target")
    parser.add_argument("--triton", type=Path, help="also measure Triton: its program, tritonserver")
    parser.add_argument(
        "--triton-backend",
        type=Path,
        default=Path("/opt/tritonserver/backends"),
        help="its folder of backends; or libonnxruntime.so, for a backend that is compiled here",
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    args = parser.parse_args()
    args.clients = tuple(int(count) for count in args.clients.split(","))
    if args.quick:
        args.rounds, args.seconds = 1, 0.5
    return args


class Bench:
    """One run: engines built, systems started, rounds measured."""

    def __init__(self, args: argparse.Namespace, folder: Path, servers: set[int], core: int, opened: ExitStack) -> None:
        self._args = args
        self._folder = folder
        self._data = folder / "data"
        self._servers = servers
        self._opened = opened
        self._load_before = os.getloadavg()[0]
        self._generator = LoadGenerator(folder, core)
        width, side = (16, 64) if args.quick else (64, 224)
        every = [bench_cases.tiny(), bench_cases.resnet18(width, side), bench_cases.resnet18_u8(width, side)]
        self._cases = [case for case in every if case.name in args.cases.split(",")]
        self._is_whole = len(self._cases) == len(every)
        self._triton = None
        if args.triton:
            (folder / "triton").mkdir()
            self._triton = Triton(args.triton, args.triton_backend, folder / "triton")

    def report(self) -> dict[str, Any]:
        """Everything that was found."""
        _tell("building the engines")
        engines = self._built()
        _tell("the load generator's own ceiling")
        ceilings = [self._ceiling(case, count) for case in self._cases for count in self._args.clients]
        memory_mib = self._memory()
        cells = self._cells(engines)
        run_rounds(cells, self._args.rounds, _tell)
        results = {(cell.case, cell.system, cell.clients): cell.found for cell in cells}
        found = [{"case": c.case, "system": c.system, "clients": c.clients, **c.found.described()} for c in cells]
        return {
            "machine": f"{len(self._servers)} cores of {cpu_name()} for the servers, 1 for the load generator",
            "versions": {
                "python": platform.python_version(),
                "onnxruntime": onnxruntime.__version__,
                "triton's onnxruntime": self._triton.version if self._triton else "",
            },
            "commit": _commit(),
            "at": time.strftime("%Y-%m-%d"),
            "load_before": round(self._load_before, 1),
            "quick": self._args.quick,
            "rounds": self._args.rounds,
            "slice_s": self._args.seconds,
            "is_sound": all(not row["failed"] and not row["wrong"] for row in found),
            "cells": found,
            "generator_ceilings": ceilings,
            "memory_mib": memory_mib,
            "goals": [{**asdict(goal), "is_met": goal.is_met} for goal in self._goals(results, memory_mib)],
        }

    def _goals(self, results: Results, memory_mib: dict[str, float]) -> list[Goal]:
        if not self._is_whole:
            return []
        return goals(results, memory_mib, self._args.clients, len(self._servers))

    def _built(self) -> dict[str, dict[str, Any]]:
        with bench_systems.service(self._data, set(os.sched_getaffinity(0))) as running:
            engines = {case.name: bench_systems.build(running, case) for case in self._cases}
            for case in self._cases:
                engine_file(running, case.name, self._folder / f"{case.name}.onnx")
        return engines

    def _ceiling(self, case: Case, clients: int) -> dict[str, Any]:
        """How many requests of this size the generator makes of a server that does nothing."""
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4150\r\n\r\n" + bytes(4150)
        requests = self._generator.written(f"ceiling-{case.name}", case.v2())
        with self._generator.trivial_server(answer, self._servers) as port:
            seconds = min(1.0, self._args.seconds)
            load = self._generator.run(port, requests, clients, seconds, warm_s=0.1, keep_every=10**9)
        return {"case": case.name, "clients": clients, "per_s": load.per_s, "generator_busy": round(load.busy, 3)}

    def _memory(self) -> dict[str, float]:
        """Resident memory of a fresh server with one warm engine, after load by the most clients; of Triton's ways,
        that which takes the least."""
        found = {}
        for case in self._cases:
            with bench_systems.service(self._data, self._servers, "--no-worker") as running:
                found[case.name] = self._loaded_mib(case, port_of(running), pid_of(running))
            _tell(f"memory with {case.name}: {found[case.name]} MiB")
        for case in self._cases_of_triton:
            mib = []
            for way in ways(len(self._servers)):
                with self._triton_running(way, [case]) as (port, pid):
                    mib.append(self._loaded_mib(case, port, pid))
            found[f"Triton, {case.name}"] = min(mib)
        return found

    def _loaded_mib(self, case: Case, port: int, pid: int) -> float:
        requests = self._generator.written(f"memory-{case.name}", case.v2())
        clients, seconds = max(self._args.clients), self._args.seconds
        self._generator.run(port, requests, clients, seconds, warm_s=1, keep_every=10**9)
        return round(resident_mib(pid), 1)

    @property
    def _cases_of_triton(self) -> list[Case]:
        """Those whose uploaded model takes what its engine takes."""
        return [case for case in self._cases if self._triton is not None and not case.options]

    # --- cells ---------------------------------------------------------------------------------------------------

    def _cells(self, engines: dict[str, dict[str, Any]]) -> list[Cell]:
        loops = self._opened.enter_context(bare_loops(self._servers))
        running = self._opened.enter_context(bench_systems.service(self._data, self._servers, "--no-worker"))
        ports = {"uvicorn": self._opened.enter_context(asgi("echo", "uvicorn", self._servers))}
        granian = {}
        if self._args.granian:
            folder = str(self._args.granian.absolute())
            ports["granian"] = self._opened.enter_context(asgi("echo", "granian", self._servers, path=folder))
            granian["granian"] = self._opened.enter_context(
                asgi("service", "granian", self._servers, path=folder, JETFORGE_DATA_DIR=str(self._data))
            )
        own = (port_of(running), pid_of(running))
        tritons = self._tritons()
        cells: list[Cell] = []
        for case in self._cases:
            cells += self._bare(loops, case)
            cells += self._echoes(ports, case)
            cells += self._served(own, case, granian)
            if case in self._cases_of_triton:
                cells += self._asked(case, case.v2(), tritons)
        if not self._is_whole:
            return cells
        recipe = engines["resnet18-u8"]["preprocess"]
        images = bench_cases.jpegs(self._cases[2], TypeAdapter(Preprocess).validate_python(recipe))
        return [*cells, *self._images(loops, own, images)]

    def _bare(self, loops: BareLoops, case: Case) -> list[Cell]:
        rows = self._folder / f"{case.name}.npy"
        np.save(rows, case.inputs)
        files = {BARE: self._folder / f"{case.name}.onnx"}
        if not case.options:  # its inputs are the engine's
            files[BARE_UPLOAD] = self._folder / f"{case.name}-uploaded.onnx"
            files[BARE_UPLOAD].write_bytes(case.model)
        cores = len(self._servers)
        ways = [(1, 1, 1), (1, cores, 1), (cores, 1, 1), (1, cores, 8), (cores, 1, 8), (cores, 1, 32)]
        return [
            bare(loops, case.name, f"{name}, {intra} thread(s) a run, batch {batch}", order)
            for threads, intra, batch in dict.fromkeys(ways)
            for name, model in files.items()
            for order in [Order(str(model), str(rows), self._seconds(case), WARM_S, threads, intra, batch)]
        ]

    def _echoes(self, servers: dict[str, tuple[int, int]], case: Case) -> list[Cell]:
        """The same bytes to a server that computes nothing."""
        bodies = [request.partition(b"\r\n\r\n")[2] for request in case.v2()]
        requests = self._generator.written(f"echo-{case.name}", [post("/", body, {}) for body in bodies])
        return [
            loaded(self._generator, (case.name, name, count), to, requests, self._seconds(case), None)
            for server, to in servers.items()
            for name in ["echo" if server == "uvicorn" else f"echo, {server}"]
            for count in self._args.clients
        ]

    def _tritons(self) -> dict[str, tuple[int, int]]:
        cases = self._cases_of_triton
        started = ways(len(self._servers)) if cases else []
        return {way.name: self._opened.enter_context(self._triton_running(way, cases)) for way in started}

    def _triton_running(self, way: Way, cases: list[Case]) -> AbstractContextManager[tuple[int, int]]:
        assert self._triton is not None
        return self._triton.running(way, cases, self._servers)

    def _served(self, own: tuple[int, int], case: Case, others: dict[str, tuple[int, int]]) -> list[Cell]:
        v2 = {"v2": own, **{f"v2, {server}": other for server, other in others.items()}}
        return self._asked(case, case.v2(), v2) + self._asked(case, case.plain(), {"/infer": own})

    def _asked(self, case: Case, requests: list[bytes], servers: dict[str, tuple[int, int]]) -> list[Cell]:
        """The same requests to each server, by the name of its row."""
        written = self._generator.written(f"{case.name}-{next(iter(servers)).strip('/')}", requests)
        return [
            loaded(self._generator, (case.name, name, count), to, written, self._seconds(case), case.is_right)
            for name, to in servers.items()
            for count in self._args.clients
        ]

    def _images(self, loops: BareLoops, own: tuple[int, int], images: JpegCase) -> list[Cell]:
        jpeg = self._folder / "photograph.jpg"
        jpeg.write_bytes(images.jpegs[0])
        recipe = {**asdict(images.recipe)}
        model, cores = str(self._folder / f"{images.engine}.onnx"), len(self._servers)
        base = Order(model, str(jpeg), self._args.seconds, WARM_S, threads=1, intra=1, recipe=recipe)
        cells = [
            bare(
                loops, "jpeg", f"{BARE}, {intra} thread(s) a run, batch 1", replace(base, threads=threads, intra=intra)
            )
            for threads, intra in dict.fromkeys([(1, 1), (1, cores), (cores, 1)])
        ]
        requests = self._generator.written("jpeg", images.requests())
        return cells + [
            loaded(
                self._generator,
                ("jpeg", "/infer", count),
                own,
                requests,
                self._args.seconds,
                images.is_right,
            )
            for count in self._args.clients
        ]

    def _seconds(self, case: Case) -> float:
        return float(self._args.seconds / 2 if case.name == "tiny" else self._args.seconds)


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def _tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
