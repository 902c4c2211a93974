"""Memory before a build: what it will need, and who makes room."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.builds import BuildOptions, Facts, Precision
from app.memory_need import Need, made_room, needed
from app.room import Room, listening
from app.storage.catalogue import Catalogue
from app.storage.database import Database
from app.storage.jobs import JobQueue
from app.storage.similar import BuildHistory, SimilarBuilds
from tests.integration.storage_fixtures import built_engine, publication, source_model

MIB = 1 << 20
HERE = built_engine().facts


@pytest.fixture
def history(database: Database) -> BuildHistory:
    return BuildHistory(database, lambda backend: HERE)


def built(catalogue: Catalogue, queue: JobQueue, model: str, took_s: float, **changes: object) -> None:
    """A build of the model of this text, which took so long."""
    source = catalogue.add_model(source_model(model))
    options = BuildOptions(precision=Precision(changes.pop("precision", "fp32")))
    job = queue.add("digits", source.digest, None, options)
    queue.claim("worker")
    engine = replace(built_engine(), built_in_s=took_s, **changes)  # type: ignore[arg-type]
    made = publication(key=f"{model} {took_s} {options.precision}", model=model)
    queue.succeed(job.id, "worker", replace(made, options=options, built=engine))


def median_s(history: BuildHistory, model: str, precision: str = "fp32") -> float | None:
    found = history.similar(source_model(model).digest, "auto", Precision(precision))
    return found.built_in_s if found else None


def test_a_build_without_history_has_no_estimate(history, catalogue, queue):
    catalogue.add_model(source_model())

    assert median_s(history, "model") is None


def test_the_median_of_builds_of_the_same_model_is_what_the_next_will_take(history, catalogue, queue):
    for took_s in (10, 12, 90):
        built(catalogue, queue, "model", took_s)
    built(catalogue, queue, "modes", 500)  # another one of that size

    assert median_s(history, "model") == 12


def test_a_new_model_is_compared_with_those_of_half_to_twice_its_size(history, catalogue, queue):
    built(catalogue, queue, "x" * 10, 10)
    built(catalogue, queue, "x" * 41, 41)
    catalogue.add_model(source_model("y" * 20))
    catalogue.add_model(source_model("y" * 100))

    assert median_s(history, "y" * 20) == 10
    assert median_s(history, "y" * 100) is None


def test_another_precision_or_device_tells_nothing(history, catalogue, queue):
    built(catalogue, queue, "model", 10, precision="int8")
    built(catalogue, queue, "model", 11, facts=Facts("onnxruntime", "1.17", "another processor", "aarch64"))

    assert median_s(history, "model") is None
    assert median_s(history, "model", "int8") == 10


def test_builds_of_before_memory_was_recorded_tell_the_time_only(history, catalogue, queue):
    built(catalogue, queue, "model", 10)
    known = history.similar(source_model().digest, "auto", Precision.FP32)
    built(catalogue, queue, "model", 11, peak_bytes=500 * MIB, device_bytes=100 * MIB)

    assert known == SimilarBuilds(1, 10, None)
    assert history.similar(source_model().digest, "auto", Precision.FP32) == SimilarBuilds(2, 10.5, 600 * MIB)


def test_the_need_is_that_of_builds_like_it_or_a_guess_that_grows_with_the_model():
    known = needed(SimilarBuilds(3, 10, 700 * MIB), 44 * MIB)

    assert (known.size_bytes, "3 builds" in known.reason) == (700 * MIB, True)
    assert needed(SimilarBuilds(3, 10, None), 44 * MIB) == needed(None, 44 * MIB)
    assert 500 * MIB < needed(None, 44 * MIB).size_bytes < needed(None, 100 * MIB).size_bytes


async def made_room_by(server: Room | Exception, socket: Path, need: Need) -> tuple[str, bool, list[tuple[int, str]]]:
    """What the worker tells when the server answers so, and what the server was asked."""
    asked: list[tuple[int, str]] = []

    async def free_up(needed_bytes: int, backend: str) -> Room:
        asked.append((needed_bytes, backend))
        if isinstance(server, Exception):
            raise server
        return server

    async with listening(socket, free_up):
        return *await asyncio.to_thread(made_room, socket, need, "tensorrt"), asked


def deep(folder: Path) -> Path:
    """A socket whose path is longer than the 108 bytes that the system takes."""
    far = folder / ("x" * 120)
    far.mkdir()
    return far / "room.sock"


async def test_the_server_makes_room_and_the_job_says_which_engines_left(tmp_path):
    text, is_enough, asked = await made_room_by(Room(MIB, ("a:1", "b:2")), deep(tmp_path), Need(MIB, "a guess"))

    assert asked == [(MIB, "tensorrt")]
    assert is_enough and "1 MiB needed (a guess), 1 MiB free after idle engines were unloaded: a:1, b:2" in text


async def test_a_build_that_may_lack_memory_is_told_so(tmp_path):
    text, is_enough, _ = await made_room_by(Room(MIB, ()), tmp_path / "room.sock", Need(2 * MIB, "a guess"))

    assert not is_enough and "no idle engine is left" in text


@pytest.mark.parametrize("left", [None, b"", b"a file"])
def test_without_a_server_the_worker_counts_for_itself(tmp_path, left):
    socket = tmp_path / "room.sock"
    if left is not None:
        socket.write_bytes(left)

    text, is_enough = made_room(socket, Need(1, "a guess"), "onnxruntime")
    short, is_enough_for_all = made_room(socket, Need(1 << 60, "a guess"), "onnxruntime")

    assert is_enough and "MiB free" in text
    assert not is_enough_for_all and "no server" in short


async def test_a_server_that_fails_to_make_room_does_not_stop_the_build(tmp_path):
    text, is_enough, _ = await made_room_by(RuntimeError("closed"), tmp_path / "room.sock", Need(1, "a guess"))

    assert is_enough and "MiB free" in text


async def test_a_server_takes_over_the_socket_of_one_that_was_killed(tmp_path):
    for _ in range(2):
        text, _, asked = await made_room_by(Room(5 * MIB, ()), tmp_path / "room.sock", Need(1, "a guess"))
        assert asked and "5 MiB free" in text


async def test_a_folder_that_holds_no_sockets_does_not_stop_the_server(tmp_path):
    (tmp_path / "room.sock").mkdir()

    text, is_enough, asked = await made_room_by(Room(MIB, ()), tmp_path / "room.sock", Need(1, "a guess"))

    assert is_enough and not asked and "MiB free" in text
