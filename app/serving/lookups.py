"""Lookups: an engine's record by its name, without asking the database for each request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from app.domain.builds import EngineRecord, parsed_ref


@dataclass
class _Found:
    record: EngineRecord
    at_s: float  # when it was true
    changes: int | None  # the count before it was read


class Lookups:
    """Keeps what was found for a short time. Used on the event loop only."""

    def __init__(
        self,
        find: Callable[[str, int | None], EngineRecord],
        workers: Executor,
        *,
        clock: Callable[[], float],
        found_for_s: float,
        changes: Callable[[], int | None],
    ) -> None:
        """
        Args:
            find: the record of a name and version (None = the newest); may block.
            workers: where it runs.
            found_for_s: how long a found record is taken for true.
            changes: a count that grows with every change of what `find` reads, told at once; None: it cannot be told.
        """
        self._find = find
        self._workers = workers
        self._clock = clock
        self._found_for_s = found_for_s
        self._changes = changes
        self._found: dict[str, _Found] = {}  # by reference
        self._looking: dict[str, asyncio.Task[EngineRecord]] = {}  # look-ups under way, by reference

    async def find(self, ref: str) -> EngineRecord:
        """The engine of that name, as it was at most `found_for_s` ago. Raises what `find` raises."""
        if known := self.known(ref):
            return known
        # Shielded: the others that wait for the same look-up are not harmed when this one is cancelled.
        return await asyncio.shield(self._looking.get(ref) or self._look_up(ref))

    def known(self, ref: str) -> EngineRecord | None:
        """The engine if it was found so lately that nothing has to be waited for."""
        found = self._found.get(ref)
        if found is None:
            return None
        now_s = self._clock()
        age_s = now_s - found.at_s
        if age_s > self._found_for_s / 2 and found.changes is not None and found.changes == self._changes():
            found.at_s = now_s  # as true as it was
            return found.record
        if age_s >= self._found_for_s:
            return None
        if age_s > self._found_for_s / 2 and ref not in self._looking:
            self._look_up(ref)  # so that a busy engine's requests never wait for it
        return found.record

    def has(self, ref: str) -> bool:
        """Whether it was found since it was last forgotten."""
        return ref in self._found

    def forget(self, name: str) -> None:
        """Look all versions of the name up anew; a look-up that is under way may find what was there before."""
        for known in [*self._found, *self._looking]:
            if known.partition(":")[0] == name:
                self._found.pop(known, None)
                self._looking.pop(known, None)

    def _look_up(self, ref: str) -> asyncio.Task[EngineRecord]:
        """Begin to look the engine up; one look-up at a time for each reference."""
        task = self._looking[ref] = asyncio.create_task(self._looked_up(ref))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # perhaps nobody waits for it
        return task

    async def _looked_up(self, ref: str) -> EngineRecord:
        asked_s, changes = self._clock(), self._changes()
        me = asyncio.current_task()
        try:
            record = await asyncio.get_running_loop().run_in_executor(self._workers, self._find, *parsed_ref(ref))
        except BaseException:
            if self._looking.get(ref) is me:
                self._found.pop(ref, None)
            raise
        else:
            if self._looking.get(ref) is me:  # else it was forgotten meanwhile
                before = self._found.get(ref)
                if before is not None and before.record == record:
                    record = before.record  # what is known by the record itself, as a client's last header, stays known
                self._found[ref] = _Found(record, asked_s, changes)
            return record
        finally:
            if self._looking.get(ref) is me:
                del self._looking[ref]
