"""Whether the database has changed, told without reading it."""

from __future__ import annotations

from storage_fixtures import add_job, child, source_model

from app.storage.watch import RevisionWatch


def test_a_revision_is_known_until_anybody_commits(database, queue, catalogue):
    watch = RevisionWatch(database)
    assert watch.known() is None
    watch.learn(watch.count(), queue.revision())
    assert watch.known() == queue.revision()

    add_job(queue, catalogue)

    assert watch.known() is None
    watch.close()


def test_a_commit_of_another_process_is_seen(database, queue):
    watch = RevisionWatch(database)
    watch.learn(watch.count(), queue.revision())
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('INSERT INTO counters VALUES (?, 1)', 'x')"
    other = child(f"{code}; c.commit()", database.db.url.database)
    other.communicate(timeout=60)

    assert other.returncode == 0
    assert watch.known() is None
    watch.close()


def test_a_commit_between_the_count_and_the_reading_is_not_lost(database, queue, catalogue):
    watch = RevisionWatch(database)
    count = watch.count()
    catalogue.add_model(source_model())
    watch.learn(count, queue.revision())

    assert watch.known() is None
    watch.close()


def test_a_writer_at_work_keeps_nobody_waiting(database, queue, catalogue):
    watch = RevisionWatch(database)
    watch.learn(watch.count(), queue.revision())

    with database.writer():
        assert watch.known() == queue.revision()
    watch.close()
