"""From an engine's record to the warm engine; whatever goes wrong on the way has a name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor

from app.backends.base import LoadedEngine
from app.domain.builds import EngineRecord
from app.domain.errors import EngineTooLarge, EngineUnloadable, ServiceError
from app.serving.warm import WarmEngine

log = logging.getLogger(__name__)


async def opened(
    record: EngineRecord,
    load_file: Callable[[EngineRecord], LoadedEngine],
    *,
    contexts: int,
    queue_rows_max: int,
    keeper: Executor,
) -> WarmEngine:
    """Load the file and open its contexts.

    Args:
        load_file: may block; runs on the keeper.

    Raises:
        EngineTooLarge, EngineUnloadable, or what `load_file` raises for a person to read.
    """
    try:
        engine = await asyncio.get_running_loop().run_in_executor(keeper, load_file, record)
        return await WarmEngine.opened(
            engine, record.built.signature, contexts=contexts, queue_rows_max=queue_rows_max, keeper=keeper
        )
    except ServiceError:
        raise
    except MemoryError as error:
        raise EngineTooLarge(
            f"The system has no memory left for {record.ref}.", hint="Unload other engines, or build a smaller one."
        ) from error
    except Exception as error:
        log.exception("an engine did not load", extra={"engine": record.ref})
        raise EngineUnloadable(
            f"The runtime could not load {record.ref}: {type(error).__name__}.",
            hint="See the service's log for the cause; building the engine again may help.",
        ) from error
