"""Warmer: has engines warm that nobody has asked for yet, the pinned ones and those of the last run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.domain.errors import ServiceError
from app.serving.seats import EngineState, WarmState
from app.serving.service import InferenceService
from app.storage.remembered import Remembered, WarmFile

log = logging.getLogger(__name__)


@dataclass
class _Pin:
    """What has become of one reference of the setting."""

    ref: str = ""  # name:version that was loaded for it; "": none yet
    problem: str = ""  # why it is not loaded
    again_s: float = 0  # when to try again after a problem, by the clock


class Warmer:
    """Loads the pinned engines and those of the last run, then watches: a pin by name follows the newest version."""

    def __init__(
        self,
        service: InferenceService,
        pinned: Sequence[str],
        file: WarmFile | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        look_every_s: float = 2,
        again_after_s: float = 60,
    ) -> None:
        """
        Args:
            pinned: `name` (its newest version) or `name:version`.
            file: remembers what is warm; None: nothing is remembered.
            look_every_s: how often pins are looked after and the file is written.
            again_after_s: how long a pinned engine that did not load is left alone.
        """
        self.is_starting = True  # the engines of the start are not all loaded yet
        self._service = service
        self._pins = {ref: _Pin() for ref in pinned}
        self._file = file
        self._clock = clock
        self._look_every_s = look_every_s
        self._again_after_s = again_after_s
        self._left: list[Remembered] | None = None  # of the last run, not loaded yet; None: the file was not read yet
        self._task: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None  # goes on when who waits for it is cancelled

    def start(self) -> None:
        """Begin in the background; requests are answered meanwhile."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Remember what is warm now, and stop. Comes before the service is closed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            if self._writing is not None:  # what it writes is older, and must not come last
                await asyncio.wait({self._writing})
            await self._remember()

    @property
    def problems(self) -> list[str]:
        """Why pinned engines are not loaded; empty when all is well."""
        return [
            f"The pinned engine {ref} is not loaded: {pin.problem}" for ref, pin in self._pins.items() if pin.problem
        ]

    async def _run(self) -> None:
        try:
            await self._look_after_pins()
            await self._restore()
            self.is_starting = False
            while True:
                await asyncio.sleep(self._look_every_s)
                await self._look_after_pins()
                await self._remember_changes()
        except Exception:
            log.exception("engines are no longer kept warm")

    # --- pins ----------------------------------------------------------------------------------------------------

    async def _look_after_pins(self) -> None:
        for ref, pin in self._pins.items():
            if pin.again_s <= self._clock():
                await self._look_after(ref, pin)

    async def _look_after(self, ref: str, pin: _Pin) -> None:
        """Load what the reference means now, unless that was done: an owner may have unloaded it since."""
        try:
            current = (await self._service.find(ref)).ref
            if current == pin.ref:
                pin.problem = ""
                return
            await self._service.load(current, pin=True)
        except ServiceError as error:
            self._fail(ref, pin, error)
            return
        earlier, pin.ref, pin.problem = pin.ref, current, ""
        log.info("pinned engine loaded", extra={"engine": current})
        if earlier and earlier not in [other.ref for other in self._pins.values()]:
            self._service.unpin(earlier)

    def _fail(self, ref: str, pin: _Pin, error: ServiceError) -> None:
        if pin.problem != error.detail:
            log.error("a pinned engine is not loaded", extra={"engine": ref, "reason": error.detail})
        pin.problem = error.detail
        pin.again_s = self._clock() + self._again_after_s

    # --- the last run --------------------------------------------------------------------------------------------

    async def _restore(self) -> None:
        """Load what was warm, as far as it fits: the least recently used first, so that their order stays."""
        if self._file is None:
            return
        self._left = await self._chosen(await asyncio.to_thread(self._file.read))
        while self._left:
            # Without it, while it loads: should the load end this process, the next start leaves it out.
            await self._write([*self._warm(), *self._left[1:]])
            await self._load(self._left[0])
            del self._left[0]
        await self._remember()

    async def _chosen(self, engines: Sequence[Remembered]) -> list[Remembered]:
        """Those that fit, the most recently used preferred, in the order of the file."""
        left_bytes = self._service.budget_bytes - self._service.used_bytes
        chosen: list[Remembered] = []
        for engine in reversed(engines):
            needed_bytes = await self._needed_bytes(engine)
            if needed_bytes is not None and needed_bytes <= left_bytes:
                left_bytes -= needed_bytes
                chosen.insert(0, engine)
        return chosen

    async def _needed_bytes(self, engine: Remembered) -> int | None:
        """None: it has been deleted."""
        for ref in engine.refs:
            try:
                return self._service.estimate_bytes(await self._service.find(ref))
            except ServiceError:
                continue
        return None

    async def _load(self, engine: Remembered) -> None:
        for ref in engine.refs:
            try:
                pin = True if ref in engine.pins else None
                await self._service.load(ref, pin=pin, keep_alive_s=engine.keep_alive_s)
            except ServiceError as error:
                log.warning("an engine of the last run is not loaded", extra={"engine": ref, "reason": error.detail})

    async def _remember_changes(self) -> None:
        """Only which engines they are: their order would change, and be written, all the time."""
        if self._file is not None and set(self._warm()) != set(self._file.engines):  # nothing is left by now
            await self._remember()

    async def _remember(self) -> None:
        if self._file is not None and self._left is not None:
            await self._write([*self._left, *self._warm()])

    async def _write(self, engines: Sequence[Remembered]) -> None:
        assert self._file is not None
        self._writing = asyncio.create_task(asyncio.to_thread(self._file.write, engines))
        await asyncio.shield(self._writing)

    def _warm(self) -> list[Remembered]:
        """What is warm, the least recently used first."""
        ready = [state for state in self._service.states() if state.state is EngineState.READY]
        ready.sort(key=lambda state: -state.last_used_s_ago)
        return [self._remembered(state) for state in ready]

    def _remembered(self, state: WarmState) -> Remembered:
        by_setting = {pin.ref for pin in self._pins.values()}
        pins = tuple(ref for ref in state.pins if ref not in by_setting)
        own_s = state.keep_alive_s if state.keep_alive_s != self._service.keep_alive_s else None
        return Remembered(state.refs, pins, own_s)
