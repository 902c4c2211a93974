"""What the service's process, its replicas and their nursery tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from app.api.observed import RequestCounts
from app.domain.builds import Digest
from app.serving.statistics import Totals

# --- to a replica ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """Have a copy of the engine that `ref` means now; answered by Loaded."""

    ref: str  # as clients write it


@dataclass(frozen=True)
class Drop:
    """Give the copy's memory back; answered by Dropped."""

    blob: Digest


@dataclass(frozen=True)
class Forget:
    """Look the engines of that name up anew."""

    name: str


@dataclass(frozen=True)
class Take:
    """The connection that comes with this is yours."""


@dataclass(frozen=True)
class Stop:
    """End once what is under way is answered."""


# --- from a replica --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    ref: str
    blob: Digest | None  # None: it did not load
    copy_bytes: int = 0  # of memory


@dataclass(frozen=True)
class Dropped:
    blob: Digest


@dataclass(frozen=True)
class Back:
    """The connection that comes with this is yours again."""

    data: bytes  # read from it and not answered
    ref: str | None = None  # the engine of which there is no warm copy here any more
    stays: bool = False  # its requests are not for replicas


@dataclass(frozen=True)
class Tally:
    """What was answered since the last one, and how many connections were closed."""

    engines: dict[str, Totals]
    used: dict[Digest, tuple[int, int, int]]  # requests, rows, runs
    requests: RequestCounts
    closed: int  # connections


# --- to the nursery --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fork:
    """Have one more replica; answered by Born."""


@dataclass(frozen=True)
class End:
    """Have no such replica any more, whatever it does."""

    pid: int


# --- from the nursery ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Born:
    """What comes with this reaches a new replica."""

    pid: int | None  # None: there is none, and nothing comes with this
    reason: str = ""


ToReplica: TypeAlias = "Load | Drop | Forget | Take | Stop"
FromReplica: TypeAlias = "Loaded | Dropped | Back | Tally"
ToNursery: TypeAlias = "Fork | End"
