"""What is stored: source models, calibration sets, engines and their versions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Table, delete, func, insert, select, update
from sqlalchemy.dialects import sqlite

from app.domain.builds import CalibrationSet, Digest, EngineRecord, Publication, SourceModel, parsed_ref
from app.domain.errors import CalibrationNotFound, EngineNotFound, InUse, InvalidRequest, ModelNotFound, NotFound
from app.domain.jobs import JobState
from app.storage.database import Database
from app.storage.history import raise_revision
from app.storage.tables import as_domain, calibrations, engine_names, engines, jobs, models

Upload = TypeVar("Upload", bound=SourceModel | CalibrationSet)
UNFINISHED = [state for state in JobState if not state.is_final]
_REFS_MAX = 10  # engines named in a refusal


class Catalogue:
    """Records only: the bytes are in the artefact store, under the digests named here."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._models = _Uploads(database, models, SourceModel, "model", ModelNotFound)
        self._calibrations = _Uploads(database, calibrations, CalibrationSet, "calibration", CalibrationNotFound)

    def add_model(self, model: SourceModel) -> SourceModel:
        """Record a model; the one recorded first, if its digest is known."""
        return self._models.add(model)

    def model(self, digest: str) -> SourceModel:
        """Raises ModelNotFound."""
        return self._models.get(digest)

    def models(self, after: str | None = None, limit: int = 50) -> list[SourceModel]:
        """Newest first, those older than the model `after`; raises InvalidRequest when that is unknown."""
        return self._models.page(after, limit)

    def delete_model(self, digest: str) -> None:
        """Forget a model; a sweep removes its bytes. Raises ModelNotFound, InUse."""
        self._models.delete(digest)

    def add_calibration(self, calibration: CalibrationSet) -> CalibrationSet:
        """Record a calibration set; the one recorded first, if its digest is known."""
        return self._calibrations.add(calibration)

    def calibration(self, digest: str) -> CalibrationSet:
        """Raises CalibrationNotFound."""
        return self._calibrations.get(digest)

    def calibrations(self, after: str | None = None, limit: int = 50) -> list[CalibrationSet]:
        """Newest first, those older than the set `after`; raises InvalidRequest when that is unknown."""
        return self._calibrations.page(after, limit)

    def delete_calibration(self, digest: str) -> None:
        """Forget a calibration set; a sweep removes its bytes. Raises CalibrationNotFound, InUse."""
        self._calibrations.delete(digest)

    def engine(self, name: str, version: int | None = None) -> EngineRecord:
        """The engine `name:version`; None stands for the newest version.

        Raises:
            EngineNotFound: its hint names the versions that exist.
        """
        with self._database.reader() as connection:
            return _engine(connection, name, version)

    def engine_by_key(self, key: str) -> EngineRecord | None:
        """The newest undamaged engine of that key, under whatever name; None when there is none."""
        whole = engines.c.damaged_at.is_(None)
        query = select(engines).where(engines.c.key == key, whole).order_by(engines.c.seq.desc()).limit(1)
        with self._database.reader() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else as_domain(EngineRecord, row)

    def engines(self, name: str | None = None, after: str | None = None, limit: int = 50) -> list[EngineRecord]:
        """Newest first.

        Args:
            name: only versions of this engine.
            after: `name:version`; only engines published before it.

        Raises:
            InvalidRequest: `after` names no engine.
        """
        query = select(engines).order_by(engines.c.seq.desc()).limit(limit)
        if name is not None:
            query = query.where(engines.c.name == name)
        with self._database.reader() as connection:
            if after is not None:
                engine, version = parsed_ref(after)
                known = select(engines.c.seq).where(engines.c.name == engine, engines.c.version == version)
                query = query.where(engines.c.seq < _cursor(connection.scalar(known), after))
            return [as_domain(EngineRecord, row) for row in connection.execute(query)]

    def add_engine(self, publication: Publication, now: datetime) -> EngineRecord:
        """Publish an engine that no job has built."""
        with self._database.writer() as connection:
            return publish(connection, publication, now)

    def mark_damaged(self, blob: Digest, now: datetime) -> None:
        """Note that the file of these engines is not what was stored, until the same bytes are published again."""
        with self._database.writer() as connection:
            newly = engines.c.blob == blob, engines.c.damaged_at.is_(None)
            if connection.execute(update(engines).where(*newly).values(damaged_at=now)).rowcount:
                raise_revision(connection)

    def delete_engine(self, name: str, version: int) -> None:
        """Forget an engine; a sweep removes its bytes, and its version is not given again. Raises EngineNotFound."""
        with self._database.writer() as connection:
            _engine(connection, name, version)
            connection.execute(delete(engines).where(engines.c.name == name, engines.c.version == version))
            raise_revision(connection)

    def surplus_engines(self, keep: int) -> list[EngineRecord]:
        """All but the newest `keep` versions of each name, oldest first."""
        age = func.row_number().over(partition_by=engines.c.name, order_by=engines.c.version.desc())
        ranked = select(engines.c.seq, age.label("age")).subquery()
        surplus = select(ranked.c.seq).where(ranked.c.age > keep)
        query = select(engines).where(engines.c.seq.in_(surplus)).order_by(engines.c.seq)
        with self._database.reader() as connection:
            return [as_domain(EngineRecord, row) for row in connection.execute(query)]

    def unused_models(self, before: datetime) -> list[SourceModel]:
        """Uploaded before then, and needed by no engine and no unfinished job."""
        return self._models.unused(before)

    def unused_calibrations(self, before: datetime) -> list[CalibrationSet]:
        """Uploaded before then, and needed by no engine and no unfinished job."""
        return self._calibrations.unused(before)

    def blob_in_use(self, digest: Digest) -> bool:
        """Whether a model, a calibration set, an engine or an unfinished job refers to these bytes."""
        return digest in self.digests()

    def digests(self) -> set[Digest]:
        """Everything that a model, a calibration set, an engine or an unfinished job refers to."""
        unfinished = jobs.c.state.in_(UNFINISHED)
        columns = (models.c.digest, calibrations.c.digest, engines.c.blob, engines.c.model, engines.c.calibration)
        queries = [
            *(select(column).distinct() for column in columns),
            *(select(column).where(unfinished) for column in (jobs.c.model, jobs.c.calibration)),
        ]
        with self._database.reader() as connection:
            found = {digest for query in queries for digest in connection.scalars(query)}
        return found - {None}


def publish(connection: Connection, publication: Publication, now: datetime) -> EngineRecord:
    """Give an engine its version, in the caller's transaction; the newest of its name stays it, if it has the same key.

    An older one of that key is published again: the name is to mean what was just asked for. Damaged engines of the
    same bytes are whole again; others do not count.
    """
    healed = update(engines).where(engines.c.blob == publication.blob, engines.c.damaged_at.is_not(None))
    if connection.execute(healed.values(damaged_at=None)).rowcount:
        raise_revision(connection)
    newest = select(engines).where(engines.c.name == publication.name).order_by(engines.c.version.desc()).limit(1)
    row = connection.execute(newest).one_or_none()
    if row is not None and row.key == publication.key and row.damaged_at is None:
        return as_domain(EngineRecord, row)
    counted = (
        sqlite.insert(engine_names)
        .values(name=publication.name, last_version=1)
        .on_conflict_do_update(index_elements=["name"], set_={"last_version": engine_names.c.last_version + 1})
        .returning(engine_names.c.last_version)
    )
    version = connection.execute(counted).scalar_one()
    published = insert(engines).values(**vars(publication), version=version, created_at=now).returning(*engines.c)
    record = as_domain(EngineRecord, connection.execute(published).one())
    raise_revision(connection)
    return record


def is_published(connection: Connection, publication: Publication) -> bool:
    """Whether an engine, under whatever name, has the publication's key and bytes."""
    same = engines.c.key == publication.key, engines.c.blob == publication.blob, engines.c.damaged_at.is_(None)
    return connection.scalar(select(engines.c.seq).where(*same).limit(1)) is not None


class _Uploads(Generic[Upload]):
    """Models or calibration sets: one table, one kind of record."""

    def __init__(
        self, database: Database, table: Table, kind: type[Upload], column: str, missing: type[NotFound]
    ) -> None:
        self._database = database
        self._table = table
        self._kind = kind
        self._column = column  # of engines and jobs that refers to it
        self._missing = missing

    def add(self, upload: Upload) -> Upload:
        added = sqlite.insert(self._table).values(**vars(upload)).on_conflict_do_nothing()
        with self._database.writer() as connection:
            if connection.execute(added).rowcount:
                raise_revision(connection)
            return self._get(connection, upload.digest)

    def get(self, digest: str) -> Upload:
        with self._database.reader() as connection:
            return self._get(connection, digest)

    def page(self, after: str | None, limit: int) -> list[Upload]:
        table = self._table
        query = select(table).order_by(table.c.seq.desc()).limit(limit)
        with self._database.reader() as connection:
            if after is not None:
                known = connection.scalar(select(table.c.seq).where(table.c.digest == after))
                query = query.where(table.c.seq < _cursor(known, after))
            return [as_domain(self._kind, row) for row in connection.execute(query)]

    def delete(self, digest: str) -> None:
        with self._database.writer() as connection:
            self._get(connection, digest)
            self._check_unused(connection, digest)
            connection.execute(delete(self._table).where(self._table.c.digest == digest))
            raise_revision(connection)

    def unused(self, before: datetime) -> list[Upload]:
        table = self._table
        built = select(engines.c[self._column]).where(engines.c[self._column].is_not(None))
        waiting = select(jobs.c[self._column]).where(jobs.c.state.in_(UNFINISHED), jobs.c[self._column].is_not(None))
        query = select(table).where(
            table.c.uploaded_at < before, table.c.digest.not_in(built), table.c.digest.not_in(waiting)
        )
        with self._database.reader() as connection:
            return [as_domain(self._kind, row) for row in connection.execute(query.order_by(table.c.seq))]

    def _get(self, connection: Connection, digest: str) -> Upload:
        row = connection.execute(select(self._table).where(self._table.c.digest == digest)).one_or_none()
        if row is None:
            raise self._missing(
                f"No {self._column} has the id {digest[:80]!r}.", hint=f"GET /{self._table.name} lists what is stored."
            )
        return as_domain(self._kind, row)

    def _check_unused(self, connection: Connection, digest: str) -> None:
        built = select(engines.c.name, engines.c.version).where(engines.c[self._column] == digest)
        refs = [f"{engine.name}:{engine.version}" for engine in connection.execute(built.order_by(engines.c.seq))]
        if refs:
            raise _built_from(self._column, refs)
        waiting = select(jobs.c.id).where(jobs.c.state.in_(UNFINISHED), jobs.c[self._column] == digest).limit(1)
        job = connection.scalar(waiting)
        if job is not None:
            raise InUse(f"The job {job} needs this {self._column}.", hint="Cancel the job, or wait for its end.")


def _built_from(what: str, refs: Sequence[str]) -> InUse:
    if len(refs) == 1:
        return InUse(f"The engine {refs[0]} was built from this {what}.", hint="Delete the engine first.")
    more = f" and {len(refs) - _REFS_MAX} more" if len(refs) > _REFS_MAX else ""
    named = ", ".join(refs[:_REFS_MAX])
    return InUse(f"{len(refs)} engines were built from this {what}: {named}{more}.", hint="Delete these engines first.")


def _engine(connection: Connection, name: str, version: int | None) -> EngineRecord:
    query = select(engines).where(engines.c.name == name).order_by(engines.c.version.desc()).limit(1)
    if version is not None:
        query = query.where(engines.c.version == version)
    row = connection.execute(query).one_or_none()
    if row is not None:
        return as_domain(EngineRecord, row)
    versions = select(engines.c.version).where(engines.c.name == name).order_by(engines.c.version)
    existing = ", ".join(map(str, connection.scalars(versions)))
    ref = name if version is None else f"{name}:{version}"
    raise EngineNotFound(
        f"There is no engine {ref[:80]!r}.",
        hint=f"Its versions are: {existing}." if existing else "GET /engines lists the engines.",
    )


def _cursor(seq: Any, after: str) -> int:
    if seq is None:
        raise InvalidRequest(f"after names nothing that is stored: {after[:80]!r}.", hint="List from the start again.")
    return int(seq)
