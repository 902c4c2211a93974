from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from storage_fixtures import (
    NOON,
    add_job,
    calibration_set,
    child,
    digest_of,
    job_in,
    publication,
    source_model,
)

from app.domain.builds import BuildOptions, Publication
from app.domain.errors import CalibrationNotFound, EngineNotFound, InUse, InvalidRequest, ModelNotFound
from app.domain.jobs import JobState
from app.storage.catalogue import publish


@pytest.fixture
def published(database, catalogue):
    """Publishes an engine of a stored model."""
    catalogue.add_model(source_model())

    def published(new: Publication):
        with database.writer() as connection:
            return publish(connection, new, NOON)

    return published


def test_a_model_and_a_calibration_set_come_back_as_they_were_added(catalogue):
    model, samples = source_model(), calibration_set()

    assert catalogue.add_model(model) == model
    assert catalogue.add_calibration(samples) == samples

    assert catalogue.model(model.digest) == model
    assert catalogue.calibration(samples.digest) == samples


def test_the_same_bytes_under_another_name_are_the_model_that_was_first(catalogue, queue):
    first = catalogue.add_model(source_model())
    revision = queue.revision()

    assert catalogue.add_model(replace(first, name="other.onnx")) == first
    assert catalogue.models() == [first]
    assert queue.revision() == revision


def test_what_is_not_stored_is_not_found(catalogue):
    with pytest.raises(ModelNotFound):
        catalogue.model("anything")
    with pytest.raises(CalibrationNotFound):
        catalogue.calibration(digest_of("model"))
    with pytest.raises(ModelNotFound):
        catalogue.delete_model("anything")
    with pytest.raises(CalibrationNotFound):
        catalogue.delete_calibration("anything")


def test_uploads_are_listed_newest_first_page_by_page(catalogue):
    added = [catalogue.add_model(source_model(f"model {i}")) for i in range(5)]

    first = catalogue.models(limit=2)
    second = catalogue.models(after=first[-1].digest, limit=2)

    assert first + second == [added[4], added[3], added[2], added[1]]
    assert catalogue.models(after=added[0].digest) == []
    with pytest.raises(InvalidRequest):
        catalogue.models(after=digest_of("unknown"))


def test_calibration_sets_are_listed_newest_first(catalogue):
    added = [catalogue.add_calibration(calibration_set(f"set {i}")) for i in range(3)]

    assert catalogue.calibrations(limit=2) == [added[2], added[1]]


def test_an_upload_that_nothing_needs_can_be_deleted_and_added_again(catalogue, queue):
    model, samples = catalogue.add_model(source_model()), catalogue.add_calibration(calibration_set())
    revision = queue.revision()

    catalogue.delete_model(model.digest)
    catalogue.delete_calibration(samples.digest)

    assert (catalogue.models(), catalogue.calibrations()) == ([], [])
    assert queue.revision() > revision
    assert catalogue.add_model(model) == model


@pytest.mark.parametrize("state", list(JobState))
def test_a_model_can_be_deleted_unless_a_job_or_an_engine_needs_it(catalogue, queue, state):
    job = job_in(state, queue, catalogue)

    if state in (JobState.FAILED, JobState.CANCELLED):
        catalogue.delete_model(job.model)
        return
    with pytest.raises(InUse, match="engine digits:1" if state is JobState.SUCCEEDED else job.id):
        catalogue.delete_model(job.model)


def test_an_older_engine_that_is_asked_for_again_becomes_the_newest(catalogue, published):
    first, other = publication(key="unit"), publication(key="raw")
    assert [published(new).version for new in (first, first, other)] == [1, 1, 2]

    again = published(first)

    assert (again.version, again.key, again.blob) == (3, "unit", first.blob)
    assert catalogue.engine(first.name, None) == again
    assert published(first) == again


def test_samples_that_an_engine_was_calibrated_with_cannot_be_deleted(catalogue, published):
    samples = catalogue.add_calibration(calibration_set())
    published(publication(calibration=samples.digest))

    with pytest.raises(InUse, match="digits:1 was built from this calibration"):
        catalogue.delete_calibration(samples.digest)


def test_all_engines_that_keep_a_model_are_named(catalogue, published):
    engine = published(publication())
    for number in range(11):
        published(publication(name="copy", key=f"key-{number}"))

    with pytest.raises(InUse, match=r"12 engines were built from this model: digits:1, copy:1, .*, copy:9 and 2 more"):
        catalogue.delete_model(engine.model)


def test_samples_that_a_waiting_job_needs_cannot_be_deleted(catalogue, queue):
    model, samples = catalogue.add_model(source_model()), catalogue.add_calibration(calibration_set())
    job = queue.add("digits", model.digest, samples.digest, BuildOptions())

    with pytest.raises(InUse, match=job.id):
        catalogue.delete_calibration(samples.digest)


def test_a_published_engine_comes_back_as_it_was_built(catalogue, published, queue):
    new, revision = publication(), queue.revision()

    record = published(new)

    assert queue.revision() > revision
    assert (record.ref, record.created_at) == ("digits:1", NOON)
    assert Publication(**{name: getattr(record, name) for name in vars(new)}) == new
    assert catalogue.engine("digits", 1) == catalogue.engine("digits") == catalogue.engine_by_key("key") == record


def test_versions_count_up_by_name_and_no_name_stands_for_the_newest(catalogue, published):
    refs = [published(publication(name, key)).ref for name, key in (("a", "1"), ("a", "2"), ("b", "3"), ("a", "4"))]

    assert refs == ["a:1", "a:2", "b:1", "a:3"]
    assert catalogue.engine("a").ref == "a:3"
    assert catalogue.engine("a", 2).key == "2"


def test_an_engine_of_the_same_key_and_name_is_published_once(catalogue, published, queue):
    first = published(publication())
    revision = queue.revision()

    assert published(publication()) == first
    assert queue.revision() == revision
    assert published(publication("other")).ref == "other:1"
    assert catalogue.engine_by_key("key").ref == "other:1"


def test_a_version_is_never_given_twice(catalogue, published):
    published(publication(key="1"))
    catalogue.delete_engine("digits", 1)

    assert published(publication(key="1")).ref == "digits:2"


def test_a_missing_engine_is_told_with_the_versions_that_exist(catalogue, published):
    for key in ("1", "2"):
        published(publication(key=key))

    with pytest.raises(EngineNotFound) as no_version:
        catalogue.engine("digits", 7)
    with pytest.raises(EngineNotFound) as no_name:
        catalogue.engine("letters")

    assert "digits:7" in no_version.value.detail
    assert "1, 2" in no_version.value.hint
    assert "GET /engines" in no_name.value.hint
    assert catalogue.engine_by_key("unknown") is None


def test_engines_are_listed_newest_first_by_name_and_page(catalogue, published):
    for name, key in (("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")):
        published(publication(name, key))

    def refs(**how) -> list[str]:
        return [engine.ref for engine in catalogue.engines(**how)]

    assert refs() == ["a:3", "a:2", "b:1", "a:1"]
    assert refs(limit=2) == ["a:3", "a:2"]
    assert refs(after="a:2") == ["b:1", "a:1"]
    assert refs(name="a", after="a:3", limit=1) == ["a:2"]
    for unknown in ("a:9", "a"):
        with pytest.raises(InvalidRequest):
            refs(after=unknown)


def test_deleting_an_engine_is_seen_and_happens_once(catalogue, published, queue):
    published(publication())
    revision = queue.revision()

    catalogue.delete_engine("digits", 1)

    assert catalogue.engines() == []
    assert queue.revision() > revision
    with pytest.raises(EngineNotFound):
        catalogue.delete_engine("digits", 1)


def test_everything_that_is_needed_is_among_the_digests(catalogue, queue, published):
    samples = catalogue.add_calibration(calibration_set())
    published(publication())
    waiting = add_job(queue, catalogue, model="waiting")
    orphan = digest_of("orphan")

    needed = {digest_of("model"), samples.digest, digest_of("engine key"), waiting.model}

    assert catalogue.digests() == needed
    assert all(catalogue.blob_in_use(digest) for digest in needed)
    assert not catalogue.blob_in_use(orphan)


def test_what_only_an_ended_job_refers_to_is_not_needed(catalogue, queue):
    job = job_in(JobState.CANCELLED, queue, catalogue)
    catalogue.delete_model(job.model)

    assert catalogue.digests() == set()


def test_threads_and_processes_that_publish_at_once_get_versions_of_their_own(database, catalogue, published):
    code = """
import sys
sys.path.insert(0, sys.argv[2])
from storage_fixtures import NOON, publication
from app.storage.catalogue import publish
from app.storage.database import Database
database = Database(sys.argv[1])
for number in range(10):
    with database.writer() as connection:
        publish(connection, publication(key=f"{sys.argv[3]} {number}"), NOON)
"""
    here = __file__.rpartition("/")[0]
    processes = [child(code, str(database.db.url), here, str(number)) for number in range(2)]
    keys = [f"thread {number}" for number in range(20)]
    threads = [threading.Thread(target=published, args=(publication(key=key),)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.communicate(timeout=60) and process.returncode for process in processes] == [0, 0]

    versions = [engine.version for engine in catalogue.engines(limit=100)]

    assert sorted(versions) == list(range(1, 41))
