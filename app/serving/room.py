"""Who leaves the pool when room is needed, and what is said when an engine cannot have a place."""

from __future__ import annotations

from collections.abc import Iterable

from app.domain.builds import EngineRecord
from app.domain.errors import EngineTooLarge, EngineUnloadable, ShuttingDown
from app.serving.seats import Seat

MIB = 1024 * 1024


def eviction_order(seats: Iterable[Seat]) -> list[Seat]:
    """The seats that may be evicted, the next to leave first: the least recently used."""
    return sorted((seat for seat in seats if seat.is_idle), key=lambda seat: seat.last_used_s)


def larger_than_budget(record: EngineRecord, needed_bytes: int, budget_bytes: int) -> EngineTooLarge:
    return EngineTooLarge(
        f"{record.ref} needs {_mib(needed_bytes)} MiB; the budget of all engines is {_mib(budget_bytes)} MiB.",
        hint="Raise engine_memory_mib, or build a smaller engine.",
    )


def all_in_use(record: EngineRecord, needed_bytes: int, used_bytes: int, budget_bytes: int) -> EngineTooLarge:
    return EngineTooLarge(
        f"{record.ref} needs {_mib(needed_bytes)} MiB; engines in use hold {_mib(used_bytes)} of"
        f" {_mib(budget_bytes)} MiB.",
        hint="Send the request again when they are idle, unload a pinned one, or raise engine_memory_mib.",
    )


def no_memory(record: EngineRecord) -> EngineTooLarge:
    return EngineTooLarge(
        f"The system has no memory left for {record.ref}.", hint="Unload other engines, or build a smaller one."
    )


def unloadable(record: EngineRecord, error: Exception) -> EngineUnloadable:
    return EngineUnloadable(
        f"The runtime could not load {record.ref}: {type(error).__name__}.",
        hint="See the service's log for the cause; building the engine again may help.",
    )


def stopping() -> ShuttingDown:
    return ShuttingDown("The service is stopping.", hint="Send the request again when it is back.")


def _mib(count_bytes: int) -> int:
    return -(-count_bytes // MIB)
