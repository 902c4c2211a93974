"""Why the pool does not load an engine."""

from __future__ import annotations

from app.domain.builds import EngineRecord
from app.domain.errors import EngineTooLarge, ShuttingDown

_MIB = 1024 * 1024


def over_budget(record: EngineRecord, needed_bytes: int, budget_bytes: int) -> EngineTooLarge:
    return EngineTooLarge(
        f"{record.ref} needs {_mib(needed_bytes)} MiB; the budget of all engines is {_mib(budget_bytes)} MiB.",
        hint="Raise engine_memory_mib, or build a smaller engine.",
    )


def others_in_use(record: EngineRecord, needed_bytes: int, used_bytes: int, budget_bytes: int) -> EngineTooLarge:
    return EngineTooLarge(
        f"{record.ref} needs {_mib(needed_bytes)} MiB; engines in use hold {_mib(used_bytes)} of"
        f" {_mib(budget_bytes)} MiB.",
        hint="Send the request again when they are idle, unload a pinned one, or raise engine_memory_mib.",
    )


def device_full(record: EngineRecord, needed_bytes: int, free_bytes: int) -> EngineTooLarge:
    return EngineTooLarge(
        f"{record.ref} needs about {_mib(needed_bytes)} MiB; the device has {_mib(free_bytes)} MiB left, and no idle"
        " engine can be unloaded.",
        hint="Stop other programs or builds, unload a pinned engine, or build a smaller one.",
    )


def stopping() -> ShuttingDown:
    return ShuttingDown("The service is stopping.", hint="Send the request again when it is back.")


def _mib(count_bytes: int) -> int:
    return -(-count_bytes // _MIB)
