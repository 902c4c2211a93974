"""The life of one engine: built, compared with its source, timed, unloaded and loaded again."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from networks_for_acceptance import Network

from acceptance.agreement import Rows, Source, agreement, tolerance_for
from acceptance.asking import Line, Refused, latency_ms
from acceptance.memory import memory_now
from acceptance.result import Result
from acceptance.samples import calibration_zip, encoded, picture
from acceptance.service import Running
from app.client import FINAL_STATES, Client, ClientError, Json
from app.domain.builds import Tolerance
from app.domain.preprocess import Preprocess, row_from_image
from app.storage.codec import decode, encode

_FRESH = 10_000  # first seed of pictures that no calibration has seen
_POLL_S = 30.0
_SETTLED = 2  # load/unload cycles before growth is counted: allocators keep what the first ones take
_RESIDENT_GROWTH_MIB = 32.0
_GPU_GROWTH_MIB = 32.0


@dataclass(frozen=True)
class Effort:
    """How much is measured; every loop ends at one of these."""

    pictures: int  # in the calibration archive
    compared: int  # fresh pictures sent through the engine
    runs: int  # timed requests of each kind,
    budget_s: float  # in at most so many seconds
    cycles: int  # of unloading and loading
    build_timeout_s: float


@dataclass(frozen=True)
class Order:
    """What is to be built."""

    network: Network
    precision: str
    backend: str
    options: Mapping[str, str]  # build options besides

    @property
    def name(self) -> str:
        return f"acceptance-{self.network.name}-{self.precision}"

    @property
    def tolerance(self) -> Tolerance:
        """That the engine is held to, here as by the service."""
        tf32 = self.options.get("tf32", "").lower() in ("true", "1", "yes", "on")
        return tolerance_for(self.precision, tf32=tf32, asked=self._asked_tolerance())

    def fields(self) -> dict[str, str]:
        """The form of POST /jobs, without its files."""
        network = self.network
        own = {"backend": self.backend, "precision": self.precision, "preprocess": network.preprocess}
        shapes = {f"{bound}_shapes": "x".join(map(str, network.shape(1))) for bound in ("min", "opt")}
        largest = {"max_shapes": "x".join(map(str, network.shape(network.rows_max)))}
        fields = {**own, **shapes, **largest, **self.options}
        asked = self._asked_tolerance()
        return {**fields, "tolerance": json.dumps(asked)} if asked else fields

    def _asked_tolerance(self) -> dict[str, float]:
        asked: dict[str, float] = json.loads(self.options.get("tolerance", "{}"))
        return asked


class Trial:
    """One order on one service. Files are made in `folder`, once for all precisions of a network."""

    def __init__(self, running: Running, client: Client, folder: Path, effort: Effort) -> None:
        self._running = running
        self._client = client
        self._folder = folder
        self._effort = effort

    def tried(self, order: Order) -> Result:
        """Build and measure; a failure on the way is a check that did not pass."""
        result = Result(order.network.name, order.precision)
        try:
            record = self._built(order, result)
            if record is not None:
                self._proven(order, record, result)
        except (ClientError, Refused, OSError, http.client.HTTPException) as error:
            result.judge("runs to its end", [f"{type(error).__name__}: {error}"], "")
        finally:
            self._leave(result)
        return result

    def _built(self, order: Order, result: Result) -> Json | None:
        network = order.network
        model = self._folder / f"{network.name}.onnx"
        samples = self._folder / f"{network.name}.zip"
        if not samples.exists():
            model.write_bytes(network.make().SerializeToString())
            calibration_zip(samples, self._effort.pictures, network.picture)
        job = self._client.build(model, order.name, samples, order.fields())
        job = self._ended(job)
        if job["state"] != "succeeded":
            failure = job["failure"] or {}
            said = f"{job['state']}: {failure.get('message', '')} {failure.get('hint', '')} {failure.get('detail', '')}"
            result.judge("builds", [said.strip()], "")
            return None
        record = self._client.engine(job["engine"])
        result.ref = record["ref"]
        result.details = {
            name: record[name] for name in ("facts", "accuracy", "latency", "warnings", "size_bytes", "signature")
        }
        result.note(
            build_s=record["built_in_s"],
            size_mib=record["size_bytes"] / 2**20,
            engine_p50_ms=record["latency"]["p50_ms"],
            engine_p99_ms=record["latency"]["p99_ms"],
            recorded_sqnr_db=min(output["sqnr_db"] for output in record["accuracy"]["outputs"]),
        )
        result.judge("builds", [], f"{record['ref']} in {record['built_in_s']:.1f} s")
        return record

    def _ended(self, job: Json) -> Json:
        """The job when it has ended; cancelled when its time is up."""
        end = time.monotonic() + self._effort.build_timeout_s
        while job["state"] not in FINAL_STATES and time.monotonic() < end:
            job = self._client.job(job["id"], wait_s=min(_POLL_S, max(1.0, end - time.monotonic())))
        if job["state"] not in FINAL_STATES:
            self._client.cancel(job["id"])
            job = self._client.job(job["id"], wait_s=_POLL_S)
        return job

    def _proven(self, order: Order, record: Json, result: Result) -> None:
        network, ref = order.network, record["ref"]
        recipe = decode(Preprocess, encode(record["preprocess"]))
        source = Source((self._folder / f"{network.name}.onnx").read_bytes(), network.input)
        pictures = [picture(_FRESH + index, *network.picture) for index in range(self._effort.compared)]
        files = [encoded(image, ".png") for image in pictures]
        rows = np.stack([row_from_image(file, recipe) for file in files]).astype(np.float32)
        jpeg = encoded(pictures[0], ".jpg")
        with Line(self._running.url, ref) as line:
            expected = self._compare(order, line, source, rows, files, result)
            self._time(line, rows[:1], jpeg, result)
            self._weigh(ref, result)
            self._wake(order, line, rows[:1], expected, result)
        self._cycle(ref, result)

    def _compare(
        self, order: Order, line: Line, source: Source, rows: Rows, files: list[bytes], result: Result
    ) -> Rows:
        """Tensors in batches of several sizes, then the same as images. Returns the right answer to the first row."""
        wanted = order.tolerance
        batches = list(_batches(rows, order.network.rows_max))
        expected = [source.run(batch) for batch in batches]
        found = agreement(expected, [line.tensor(batch) for batch in batches])
        result.note(sqnr_db=found.sqnr_db, cosine=found.cosine, max_rel=found.max_rel)
        sizes = ", ".join(str(len(batch)) for batch in batches)
        result.judge(
            "tensors agree with the source", found.problems(wanted), f"{found.sqnr_db:.1f} dB, batches {sizes}"
        )
        by_image = [line.image(file, "image/png") for file in files]
        found = agreement(list(np.concatenate(expected)[:, np.newaxis]), by_image)
        result.judge("images agree with the source", found.problems(wanted), f"{found.sqnr_db:.1f} dB")
        return expected[0][:1]

    def _time(self, line: Line, row: Rows, jpeg: bytes, result: Result) -> None:
        effort = self._effort
        tensor = latency_ms(lambda: line.tensor(row), effort.runs, effort.budget_s)
        image = latency_ms(lambda: line.image(jpeg, "image/jpeg"), effort.runs, effort.budget_s)
        result.note(http_tensor_p50_ms=tensor["p50"], http_tensor_p99_ms=tensor["p99"])
        result.note(http_jpeg_p50_ms=image["p50"], http_jpeg_p99_ms=image["p99"])
        result.details["http_runs"] = {"tensor": tensor["runs"], "jpeg": image["runs"]}

    def _weigh(self, ref: str, result: Result) -> None:
        memory = memory_now(self._running.pid)
        warm = self._client.engine(ref)["warm"] or {}
        result.note(resident_mib=memory.resident, anonymous_mib=memory.anonymous, system_mib=memory.system)
        result.note(gpu_mib=memory.gpu, device_mib=warm["device_bytes"] / 2**20 if warm else None)

    def _wake(self, order: Order, line: Line, row: Rows, expected: Rows, result: Result) -> None:
        """The first answer of a cold engine: how late, and still right."""
        ref = result.ref
        assert ref is not None
        self._client.unload(ref)
        start = time.perf_counter()
        answer = line.tensor(row)
        cold_ms = (time.perf_counter() - start) * 1e3
        warm = self._client.engine(ref)["warm"] or {}
        result.note(cold_ms=cold_ms, load_s=warm.get("load_s"))
        found = agreement([expected], [answer])
        problems = found.problems(order.tolerance)
        result.judge("answers from cold", problems, f"after {cold_ms:.0f} ms, {found.sqnr_db:.1f} dB")

    def _cycle(self, ref: str, result: Result) -> None:
        """Unload and load, time and again: what is given back is given back whole."""
        settled = memory_now(self._running.pid)
        for index in range(self._effort.cycles):
            self._client.load(ref)
            self._client.unload(ref)
            if index + 1 == _SETTLED:
                settled = memory_now(self._running.pid)
        after = memory_now(self._running.pid)
        resident, gpu = _grown(settled.resident, after.resident), _grown(settled.gpu, after.gpu)
        result.note(resident_growth_mib=resident, gpu_growth_mib=gpu)
        problems = [
            f"{what} grew by {grown:.0f} MiB, wanted ≤ {limit:g}"
            for what, grown, limit in (
                ("the server's memory", resident, _RESIDENT_GROWTH_MIB),
                ("the GPU's memory", gpu, _GPU_GROWTH_MIB),
            )
            if grown is not None and grown > limit
        ]
        grown_text = ", ".join(
            f"{what} {'not measured' if grown is None else f'{grown:+.0f} MiB'}"
            for what, grown in (("server", resident), ("GPU", gpu))
        )
        result.judge("gives memory back", problems, f"{self._effort.cycles} cycles of load and unload: {grown_text}")

    def _leave(self, result: Result) -> None:
        """A service that is not ours is left without our engine."""
        if result.ref is None or self._running.pid is not None:
            return
        try:
            self._client.delete_engine(result.ref)
        except ClientError as error:
            print(f"{result.ref} could not be deleted: {error}", file=sys.stderr)


def _batches(rows: Rows, rows_max: int) -> list[Rows]:
    """One row, then 2 and 3, the largest batch, and what is left."""
    parts, start = [], 0
    for size in (1, 2, 3, *(rows_max for _ in rows)):
        if start < len(rows):
            parts.append(rows[start : start + size])
            start += size
    return parts


def _grown(before: float | None, after: float | None) -> float | None:
    return after - before if before is not None and after is not None else None
