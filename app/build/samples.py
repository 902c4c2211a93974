"""Calibration archives as rows of the model's inputs, streamed: surveyed once, then split and read as often as wanted.

archive ──► surveyed: every row is made once; unusable ones and copies are dropped, the rest described
            ├─ calibration: four of five
            └─ held back: every fifth, for the proof of the engine
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.backends.base import Samples
from app.build.sample_files import ARRAYS, MakeRow, Rows, Unusable, pending_rows
from app.build.sample_spread import Spread
from app.domain.preprocess import Preprocess
from app.domain.tensors import Tensors
from app.storage.archives import IMAGES, opened_archive, usable_entries

ROWS_MAX = 1280  # used of an archive, evenly spread over it: more change no range
_HELD_BACK_MAX = 256
_HELD_BACK_EVERY = 5

_THREADS = max(1, min(4, len(os.sched_getaffinity(0))))
_AHEAD = 2 * _THREADS  # rows made before they are asked for


@dataclass(frozen=True)
class SampleSource:
    """Where rows come from and how they are made."""

    archive: Path
    inputs: Rows
    recipe: Preprocess | None


@dataclass(frozen=True)
class Row:
    """One usable sample."""

    entry: str  # name of its file in the archive
    index: int  # within the file
    digest: bytes  # of the row as the engine takes it


@dataclass(frozen=True)
class Survey:
    """What an archive holds."""

    source: SampleSource
    rows: tuple[Row, ...]  # usable, each content once, in the archive's order
    copies: int  # rows left out because they equal another one
    unusable: tuple[tuple[str, str], ...]  # files with the reason
    is_misfit: bool  # whether any of those is readable, but does not fit the model's inputs
    skipped: int  # files left out because there are more than are used, or of kinds that are none of samples
    foreign: tuple[str, ...]  # files of such kinds
    spread: Spread

    def calibration(self) -> Selection:
        held = {row.digest for row in self._held_back()}
        return Selection(self.source, tuple(row for row in self.rows if row.digest not in held))

    def held_back(self) -> Selection:
        """Rows that calibration never sees."""
        return Selection(self.source, self._held_back())

    def everything(self) -> Selection:
        """Rows for a proof when nothing is calibrated."""
        return Selection(self.source, self.rows[:: -(-len(self.rows) // _HELD_BACK_MAX) or 1])

    def _held_back(self) -> tuple[Row, ...]:
        every = max(_HELD_BACK_EVERY, -(-len(self.rows) // _HELD_BACK_MAX))
        return self.rows[every - 1 :: every]


class Selection(Samples):
    """Some rows of an archive, made anew each time they are read."""

    def __init__(self, source: SampleSource, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._source = source

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def key(self) -> str:
        return hashlib.sha256(b"".join(row.digest for row in self.rows)).hexdigest()

    def batches(self, rows: int) -> Iterator[Tensors]:
        batch: list[Tensors] = []
        for row in self._made():
            batch.append(row)
            if len(batch) == rows:
                yield _stacked(batch)
                batch = []
        if batch:
            yield _stacked(batch)

    def _made(self) -> Iterator[Tensors]:
        wanted: dict[str, set[int]] = {}
        for row in self.rows:
            wanted.setdefault(row.entry, set()).add(row.index)
        with opened_archive(self._source.archive) as archive, ThreadPoolExecutor(_THREADS) as pool:
            yield from _in_order(pool, self._wanted(archive, wanted))

    def _wanted(self, archive: zipfile.ZipFile, wanted: Mapping[str, set[int]]) -> Iterator[MakeRow]:
        for name, indices in wanted.items():
            pending = pending_rows(archive, archive.getinfo(name), self._source.inputs, self._source.recipe)
            for index, make in enumerate(pending):
                if index in indices:
                    yield make
                if index == max(indices):
                    break


def filled(batch: Tensors, rows: int) -> Tensors:
    """The batch with its last row repeated until there are so many."""
    return {
        name: np.concatenate([tensor, np.repeat(tensor[-1:], rows - len(tensor), axis=0)])
        if len(tensor) < rows
        else tensor
        for name, tensor in batch.items()
    }


def surveyed(source: SampleSource) -> Survey:
    """Make every row once, to find out which can be used."""
    with opened_archive(source.archive) as archive, ThreadPoolExecutor(_THREADS) as pool:
        entries = usable_entries(archive)
        files = [info for info in entries if Path(info.filename).suffix.lower() in IMAGES | ARRAYS]
        others = [info for info in entries if Path(info.filename).suffix.lower() not in IMAGES | ARRAYS]
        step = -(-len(files) // ROWS_MAX) or 1
        surveyor = _Surveyor(source)
        for info in files[::step]:
            surveyor.read(pool, archive, info)
        surveyor.finish()
    rows = surveyor.rows[:: -(-len(surveyor.rows) // ROWS_MAX) or 1]
    return Survey(
        source=source,
        rows=tuple(rows),
        copies=surveyor.copies,
        unusable=tuple(surveyor.unusable.items()),
        is_misfit=surveyor.is_misfit,
        skipped=len(entries) - len(files[::step]),
        foreign=tuple(info.filename for info in others),
        spread=surveyor.spread,
    )


class _Surveyor:
    def __init__(self, source: SampleSource) -> None:
        self.rows: list[Row] = []
        self.copies = 0
        self.unusable: dict[str, str] = {}
        self.is_misfit = False
        self.spread = Spread(source.recipe)
        self._source = source
        self._seen: set[bytes] = set()
        self._pending: deque[tuple[str, int, Future[tuple[Tensors, bytes]]]] = deque()

    def read(self, pool: ThreadPoolExecutor, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        try:
            for index, make in enumerate(pending_rows(archive, info, self._source.inputs, self._source.recipe)):
                self._pending.append((info.filename, index, pool.submit(_digested, make)))
                if len(self._pending) > _AHEAD:
                    self._take()
        except Unusable as error:
            self._refuse(info.filename, error)

    def finish(self) -> None:
        while self._pending:
            self._take()

    def _take(self) -> None:
        entry, index, future = self._pending.popleft()
        try:
            tensors, digest = future.result()
        except Unusable as error:
            self._refuse(entry, error)
            return
        if digest in self._seen:
            self.copies += 1
            return
        self._seen.add(digest)
        self.rows.append(Row(entry, index, digest))
        self.spread.add(tensors)

    def _refuse(self, entry: str, error: Unusable) -> None:
        self.unusable.setdefault(entry, str(error))
        self.is_misfit = self.is_misfit or error.is_misfit


def _digested(make: MakeRow) -> tuple[Tensors, bytes]:
    tensors = make()
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(tensors[name].data)
    return tensors, digest.digest()


def _in_order(pool: ThreadPoolExecutor, pending: Iterator[MakeRow]) -> Iterator[Tensors]:
    ahead: deque[Future[Tensors]] = deque()
    for make in pending:
        ahead.append(pool.submit(make))
        if len(ahead) > _AHEAD:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _stacked(rows: Sequence[Tensors]) -> Tensors:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
