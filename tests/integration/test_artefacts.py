from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from pathlib import Path

import pytest
from storage_fixtures import child, digest_of

from app.domain.errors import DiskFull, InvalidRequest
from app.storage.artefacts import SPACE_CHECK_BYTES, ArtefactStore, disk_errors

DAY_S = 86_400


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path / "artefacts")


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


def make_old(path: Path) -> None:
    then = time.time() - DAY_S
    os.utime(path, (then, then))


def test_stored_bytes_are_found_by_their_digest(store):
    digest = store.put([b"hello ", b"world"])

    assert digest == digest_of("hello world")
    assert store.path(digest).read_bytes() == b"hello world"
    assert store.size_bytes(digest) == 11
    assert store.has(digest)
    assert store.verify(digest)


def test_a_file_is_stored_as_a_copy_that_is_read_only(store, tmp_path):
    source = tmp_path / "engine"
    source.write_bytes(b"x" * 3_000_000)

    digest = store.put_file(source)

    source.write_bytes(b"changed")
    assert store.verify(digest)
    assert stat.S_IMODE(store.path(digest).stat().st_mode) == 0o444


def test_the_same_bytes_twice_are_one_file(store, tmp_path):
    assert store.put([b"same"]) == store.put([b"sa", b"me"])

    assert len(files_under(tmp_path)) == 1


def test_a_draft_can_be_read_before_it_is_committed(store):
    with store.draft() as draft:
        draft.write(b"some bytes")

        assert draft.size_bytes == 10
        assert draft.path.read_bytes() == b"some bytes"


def test_a_draft_that_is_not_committed_leaves_nothing_behind(store, tmp_path):
    with pytest.raises(RuntimeError), store.draft() as draft:
        draft.write(b"half of")
        raise RuntimeError("the client has gone")

    assert files_under(tmp_path) == []


def test_a_committed_artefact_cannot_be_written_to(store):
    with store.draft() as draft:
        draft.write(b"whole")
        digest = draft.commit()
        with pytest.raises(ValueError):
            draft.write(b" and more")

    assert store.path(digest).read_bytes() == b"whole"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:../../../../etc/passwd",
        "../" + "a" * 61,
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 64 + "\n",
        "md5:" + "a" * 64,
    ],
)
def test_what_is_not_a_digest_never_becomes_a_path(store, text):
    for use in (store.path, store.has, store.size_bytes, store.delete, store.verify):
        with pytest.raises(InvalidRequest):
            use(text)


def test_changed_bytes_are_noticed(store):
    digest = store.put([b"as it was"])
    path = store.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"as it is!")

    assert not store.verify(digest)


def test_a_truncated_artefact_is_whole_again_after_another_upload(store):
    digest = store.put([b"as it was"])
    store.path(digest).chmod(0o644)
    store.path(digest).write_bytes(b"as")

    store.put([b"as it was"])

    assert store.verify(digest)


def test_a_changed_artefact_is_whole_again_after_another_upload(store):
    digest = store.put([b"the model"])
    path = store.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"the mOdel")

    assert store.put([b"the model"]) == digest

    assert store.verify(digest)


def test_a_deleted_artefact_is_gone_and_can_be_deleted_again(store):
    digest = store.put([b"bytes"])

    store.delete(digest)
    store.delete(digest)

    assert not store.has(digest)
    assert not store.verify(digest)


def test_a_sweep_removes_only_what_is_old_and_not_referred_to(store):
    kept, orphan, young = store.put([b"kept"]), store.put([b"orphan"]), store.put([b"young"])
    make_old(store.path(kept))
    make_old(store.path(orphan))

    assert store.sweep({kept}, older_than_s=DAY_S / 2) == [orphan]

    assert (store.has(kept), store.has(orphan), store.has(young)) == (True, False, True)


def test_a_sweep_removes_what_a_runtime_left_that_was_killed_while_it_loaded_an_engine(store):
    engine = store.path(store.put([b"engine"]))
    loading = engine.parent / ".loading-x"
    loading.mkdir()
    os.link(engine, loading / "weights.bin")
    make_old(loading)

    store.sweep((), older_than_s=DAY_S / 2)

    assert not loading.exists() and engine.read_bytes() == b"engine"


def test_a_sweep_spares_an_orphan_that_was_uploaded_again(store):
    digest = store.put([b"bytes"])
    make_old(store.path(digest))

    store.put([b"bytes"])

    assert store.sweep((), older_than_s=DAY_S / 2) == []


def test_a_sweep_never_takes_what_was_stored_while_it_ran(store):
    stop = threading.Event()

    def sweep_again_and_again() -> None:
        while not stop.is_set():
            store.sweep((), older_than_s=DAY_S / 2)

    sweeper = threading.Thread(target=sweep_again_and_again)
    sweeper.start()
    missing = 0
    for _ in range(300):
        digest = store.put([b"bytes"])
        missing += not store.has(digest)
        make_old(store.path(digest)) if store.has(digest) else None
    stop.set()
    sweeper.join()

    assert missing == 0


def test_the_draft_of_a_killed_process_is_swept(store, tmp_path):
    code = """
import sys, time
from pathlib import Path
from app.storage.artefacts import ArtefactStore
with ArtefactStore(Path(sys.argv[1])).draft() as draft:
    draft.write(b"half of it")
    print(draft.path, flush=True)
    time.sleep(600)
"""
    with child(code, str(tmp_path / "artefacts")) as process:
        left_behind = Path(process.stdout.readline().strip())
        process.kill()
    assert left_behind.read_bytes() == b"half of it"

    assert store.sweep((), older_than_s=DAY_S) == []
    make_old(left_behind)
    assert store.sweep((), older_than_s=DAY_S / 2) == [left_behind.name]

    assert files_under(tmp_path) == []


def test_nothing_is_written_when_too_little_disk_is_free(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    store = ArtefactStore(tmp_path / "artefacts", min_free_bytes=free * 2)

    with pytest.raises(DiskFull):
        store.put([b"bytes"])

    assert files_under(tmp_path) == []


def test_a_write_stops_before_it_fills_the_disk(store, tmp_path):
    with pytest.raises(DiskFull), store.draft() as draft:
        draft.write(b"x" * 1000)
        store.min_free_bytes = shutil.disk_usage(tmp_path).free * 2  # as if someone had filled the disk meanwhile
        draft.write(b"x" * SPACE_CHECK_BYTES)

    assert files_under(tmp_path) == []


def test_a_full_disk_is_told_as_such():
    with pytest.raises(DiskFull), disk_errors(), Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"bytes")


def test_other_errors_of_the_disk_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), disk_errors():
        (tmp_path / "missing").read_bytes()


def test_many_threads_may_store_the_same_bytes_at_once(store, tmp_path):
    threads = [threading.Thread(target=store.put, args=([b"same" * 100_000],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(files_under(tmp_path)) == 1
    assert store.verify(digest_of("same" * 100_000))
