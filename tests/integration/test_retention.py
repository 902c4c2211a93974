"""What has served its time goes; what is in use stays, whatever its age."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from app.domain.builds import BuildOptions, Digest
from app.domain.errors import DiskFull
from app.retention import Removal, Retention
from app.settings import Settings
from app.storage.artefacts import ArtefactStore
from app.storage.catalogue import Catalogue
from app.storage.database import Database, migrate
from app.storage.jobs import JobQueue
from app.storage.old_jobs import OldJobs
from tests.integration.storage_fixtures import FAILURE, NOON, calibration_set, digest_of, publication, source_model


class Shop:
    """A data folder and what was stored in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        migrate(f"sqlite:///{root / 'jetforge.db'}", root / "migrate.lock")
        self.database = Database(f"sqlite:///{root / 'jetforge.db'}")
        self.catalogue, self.store = Catalogue(self.database), ArtefactStore(root / "artefacts")
        self.queue = JobQueue(self.database, now=lambda: NOON)
        (root / "logs").mkdir()

    def engine(self, name: str, key: str, model: str = "model") -> str:
        self.catalogue.add_model(source_model(model))
        queued = self.queue.add(name, digest_of(model), None, BuildOptions())
        self.queue.claim("worker")
        return self.queue.succeed(queued.id, "worker", publication(name, key, model)).ref

    def failed_job(self) -> str:
        self.catalogue.add_model(source_model("failing"))
        job = self.queue.add("failing", digest_of("failing"), None, BuildOptions())
        self.queue.claim("worker")
        self.queue.fail(job.id, "worker", FAILURE)
        (self.root / "logs" / f"{job.id}.log").write_text("why it failed")
        return job.id

    def retention(self, **keep: float) -> Retention:
        settings = Settings(data_dir=self.root, **{"keep_jobs_days": 0, "orphan_age_s": 0, **keep})
        return Retention(settings, self.store, self.catalogue, OldJobs(self.database))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.database.close()


def ids(removals: list[Removal]) -> set[str]:
    return {removal.id for removal in removals}


def test_surplus_versions_go_and_the_newest_of_every_name_stay(shop):
    for key in ("a", "b", "c"):
        shop.engine("digits", key)
    shop.engine("faces", "d")

    gone = shop.retention(keep_versions=2).apply(in_use=())

    assert ids(gone) == {"digits:1"}
    assert {engine.ref for engine in shop.catalogue.engines()} == {"digits:2", "digits:3", "faces:1"}


def test_a_surplus_version_that_is_warm_stays(shop):
    for key in ("a", "b", "c"):
        shop.engine("digits", key)

    gone = shop.retention(keep_versions=1).apply(in_use={"digits:1"})

    assert ids(gone) == {"digits:2"}


def test_unused_uploads_go_by_age_and_those_of_engines_and_waiting_jobs_stay(shop):
    shop.engine("digits", "a", model="of an engine")
    shop.catalogue.add_model(source_model("waited for"))
    calibration = shop.catalogue.add_calibration(calibration_set("waited for"))
    shop.queue.add("waiting", digest_of("waited for"), calibration.digest, BuildOptions())
    shop.catalogue.add_model(source_model("unused"))
    shop.catalogue.add_calibration(calibration_set("unused"))
    retention = shop.retention(keep_unused_days=7)

    assert retention.apply((), NOON + timedelta(days=6)) == []
    gone = retention.apply((), NOON + timedelta(days=8))

    assert sorted(removal.kind.value for removal in gone) == ["calibration", "model"]
    assert ids(gone) == {digest_of("unused")}


def test_old_jobs_go_with_their_history_and_log_and_waiting_ones_stay(shop):
    failed = shop.failed_job()
    waiting = shop.queue.add("waiting", digest_of("failing"), None, BuildOptions())
    before = shop.queue.revision()

    gone = shop.retention(keep_jobs_days=30).apply((), NOON + timedelta(days=31))

    assert ids(gone) == {failed}
    assert [job.id for job in shop.queue.list()] == [waiting.id]
    assert shop.queue.events(failed) == []
    assert not (shop.root / "logs" / f"{failed}.log").exists()
    assert shop.queue.revision() > before


def test_a_job_that_was_queued_again_meanwhile_stays(shop):
    job = shop.failed_job()
    shop.queue.retry(job)

    assert OldJobs(shop.database).forget([job]) == []
    assert shop.queue.get(job).id == job


def test_bytes_that_nothing_names_go_and_their_size_is_told(shop):
    named = shop.store.put([b"model"])
    shop.catalogue.add_model(source_model("model"))
    orphan = shop.store.put([b"nobody's"])

    gone = shop.retention().apply(())

    assert [(removal.id, removal.size_bytes) for removal in gone] == [(orphan, 8)]
    assert shop.store.has(named) and not shop.store.has(orphan)


def test_a_plan_tells_what_would_go_and_removes_nothing(shop):
    shop.engine("digits", "a")
    shop.engine("digits", "b")
    failed, orphan = shop.failed_job(), shop.store.put([b"nobody's"])
    retention = shop.retention(keep_versions=1, keep_jobs_days=30)

    planned = retention.planned((), NOON + timedelta(days=31))

    assert {"digits:1", failed, orphan} <= ids(planned)
    assert shop.catalogue.engine("digits", 1) and shop.queue.get(failed) and shop.store.has(orphan)


def test_by_default_only_old_jobs_and_orphans_go(shop):
    for key in ("a", "b"):
        shop.engine("digits", key)
    settings = Settings(data_dir=shop.root)
    retention = Retention(settings, shop.store, shop.catalogue, OldJobs(shop.database))

    gone = retention.apply((), NOON + timedelta(days=400))

    assert {removal.kind.value for removal in gone} == {"job"}


def test_what_is_stored_never_exceeds_its_quota(tmp_path):
    store = ArtefactStore(tmp_path, used_bytes_max=100)
    kept = store.put([b"a" * 60])

    with pytest.raises(DiskFull, match="may be"):
        store.put([b"b" * 60])

    assert store.stored_bytes() == 60
    assert store.put([b"a" * 60]) == kept == Digest(kept)  # stored already: it takes no room
    assert list((tmp_path / "drafts").iterdir()) == []
