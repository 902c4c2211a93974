"""The model repository of the Open Inference Protocol, for REST and gRPC: names, the index, load and unload."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool

from app.api.services import Services
from app.domain.builds import NAME, EngineRecord
from app.domain.errors import EngineNotFound, FeatureUnsupported, InvalidRequest

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
VERSION_MAX = 999_999_999
ENGINES_MAX = 10_000  # in one list
_NEWEST = "-1"


def engine_ref(name: str, version: str) -> str:
    """The engine that a request names: `name` for the newest version, else `name:version`.

    Args:
        version: a number; empty or -1 for the newest.

    Raises:
        InvalidRequest: the version is no number.
        EngineNotFound: no engine can have that name or version.
    """
    version = version or _NEWEST
    if not re.fullmatch(r"-1|[0-9]{1,18}", version):
        raise InvalidRequest(f"{version[:80]!r} is not a version.", hint="Versions are 1, 2, …; -1 is the newest.")
    ref = name if version == _NEWEST else f"{name}:{int(version)}"
    if not NAME.fullmatch(name) or (version != _NEWEST and not 1 <= int(version) <= VERSION_MAX):
        raise EngineNotFound(f"There is no engine {ref[:80]!r}.", hint="The repository's index lists the engines.")
    return ref


async def published(wired: Services, name: str | None = None) -> list[EngineRecord]:
    """Every published engine, all versions; of one name, if one is given."""
    return await run_in_threadpool(wired.catalogue.engines, name=name, limit=ENGINES_MAX)


async def index(wired: Services, *, only_ready: bool) -> list[dict[str, str]]:
    """An entry for each version of each engine."""
    entries = [_index_entry(record, wired.inference.is_withdrawn(record)) for record in await published(wired)]
    return [entry for entry in entries if not only_ready or entry["state"] == "READY"]


async def load(wired: Services, name: str, parameters: Mapping[str, Any]) -> None:
    """Make the newest version warm.

    Raises:
        FeatureUnsupported: the parameters bring a configuration or files.
    """
    if any(parameter == "config" or parameter.startswith("file:") for parameter in parameters):
        raise FeatureUnsupported(
            "The request brings a model configuration or files.", hint="Build engines with POST /jobs, then load them."
        )
    await wired.inference.load(engine_ref(name, _NEWEST))


async def unload(wired: Services, name: str) -> None:
    """Give the memory of all versions back; requests that run are finished first."""
    record = await wired.inference.find(engine_ref(name, _NEWEST))
    for version in await published(wired, record.name):
        await wired.inference.unload(version.ref)


def _index_entry(record: EngineRecord, is_withdrawn: bool) -> dict[str, str]:
    state, reason = ("UNAVAILABLE", "unloaded") if is_withdrawn else ("READY", "")
    return {"name": record.name, "version": str(record.version), "state": state, "reason": reason}
