"""Which class a sample is of: from a table in the archive, or from the folder it lies in."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from app.build.sample_files import ARRAYS, TABLE
from app.domain.errors import LabelsContradict
from app.storage.archives import IMAGES, read_entry, usable_entries

_TABLE_BYTES_MAX = 16 << 20
_SHOWN = 5


@dataclass(frozen=True)
class Classes:
    """What the model tells samples apart into."""

    count: int
    names: tuple[str, ...]  # by index; empty when the request gave none

    def index(self, text: str) -> int | None:
        """The class of that name or index; None when there is none."""
        if text in self.names:
            return self.names.index(text)
        return int(text) if text.isascii() and text.isdecimal() and int(text) < self.count else None


def labels_in(archive: zipfile.ZipFile, classes: Classes) -> Mapping[str, int]:
    """The class of each file that has one, by its name in the archive.

    A table (`.csv`, two columns: file, class) counts before folders. Folders are classes when any of them is named
    like one.

    Raises:
        LabelsContradict: some of the labels are not classes of the model.
    """
    names = [info.filename for info in usable_entries(archive)]
    samples = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGES | ARRAYS]
    tables = [name for name in names if PurePosixPath(name).suffix.lower() == TABLE]
    if tables:
        return _from_table(archive, sorted(tables, key=lambda name: (len(PurePosixPath(name).parts), name))[0], classes)
    return _from_folders(samples, classes)


def _from_folders(names: Sequence[str], classes: Classes) -> dict[str, int]:
    folders = {name: PurePosixPath(name).parent.name for name in names}
    found = {folder: classes.index(folder) for folder in set(folders.values()) if folder}
    known = [folder for folder, index in found.items() if index is not None]
    if not known:  # the folders mean something else
        return {}
    _refuse_unknown(sorted(set(found) - set(known)), "folders", classes)
    return {name: index for name, folder in folders.items() if (index := found.get(folder)) is not None}


def _from_table(archive: zipfile.ZipFile, table: str, classes: Classes) -> dict[str, int]:
    text = read_entry(archive, archive.getinfo(table), _TABLE_BYTES_MAX).decode("utf-8-sig", errors="replace")
    rows = [(row[0].strip(), row[1].strip()) for row in csv.reader(io.StringIO(text)) if len(row) >= 2]
    found = _Finder(archive.namelist(), PurePosixPath(table).parent)
    if rows and classes.index(rows[0][1]) is None and found.entry(rows[0][0]) is None:
        rows = rows[1:]  # a heading
    _refuse_unknown(sorted({label for _, label in rows if classes.index(label) is None}), "labels", classes)
    named = ((found.entry(file), classes.index(label)) for file, label in rows)
    return {entry: index for entry, index in named if entry is not None and index is not None}


class _Finder:
    """Files as a table names them: by their path in the archive, from the table's folder, or by a name of their own."""

    def __init__(self, entries: Sequence[str], folder: PurePosixPath) -> None:
        self._entries = set(entries)
        self._folder = folder
        self._by_name: dict[str, str | None] = {}
        for entry in entries:
            name = PurePosixPath(entry).name
            self._by_name[name] = None if name in self._by_name else entry

    def entry(self, file: str) -> str | None:
        return next(self._candidates(file), None)

    def _candidates(self, file: str) -> Iterator[str]:
        yield from (path for path in (file, str(self._folder / file)) if path in self._entries)
        only = self._by_name.get(PurePosixPath(file).name)
        if only is not None:
            yield only


def _refuse_unknown(unknown: Sequence[str], what: str, classes: Classes) -> None:
    if not unknown:
        return
    shown = ", ".join(repr(name[:40]) for name in unknown[:_SHOWN])
    raise LabelsContradict(
        f"The calibration archive's {what} name classes that the model does not have: {shown}"
        f"{' and others' if len(unknown) > _SHOWN else ''}. It has {classes.count}.",
        hint="Name them as in the option labels, or by class index from 0; or leave labels out of the archive.",
    )
