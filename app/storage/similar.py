"""What builds like this one took on this device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select

from app.domain.builds import Digest, Facts, Precision
from app.storage.database import Database
from app.storage.tables import engines, models

_LOOKED_AT = 50  # of the newest
_SIZES_APART = 2.0  # a model is similar to those of half to twice its size


@dataclass(frozen=True)
class SimilarBuilds:
    count: int  # never 0
    built_in_s: float  # median, as is the next
    memory_bytes: int | None  # None: none of them tells


class BuildHistory:
    """Builds of the same backend and precision on this device: of the same model, else of models of like size."""

    def __init__(self, database: Database, facts: Callable[[str], Facts]) -> None:
        """
        Args:
            facts: of the backend of that name, or of the one that "auto" stands for; raises BackendMissing.
        """
        self._database = database
        self._facts = facts

    def similar(self, model: Digest, backend: str, precision: Precision) -> SimilarBuilds | None:
        """None when there were none.

        Args:
            backend: its name, or "auto".
            precision: as asked for: builds with precision auto are like each other only.

        Raises:
            BackendMissing: there is no such backend here any more.
        """
        facts = self._facts(backend)
        query = (
            select(engines.c.model, *_taken())
            .join(models, models.c.digest == engines.c.model)
            .where(
                _of(engines.c.built, "facts.backend") == facts.backend,
                _of(engines.c.built, "facts.device") == facts.device,
                _of(engines.c.options, "precision") == precision.value,
                models.c.size_bytes * _SIZES_APART >= _size(model),
                models.c.size_bytes <= _size(model) * _SIZES_APART,
            )
            .order_by(engines.c.seq.desc())
            .limit(_LOOKED_AT)
        )
        with self._database.reader() as connection:
            found = connection.execute(query).all()
        return _median([row for row in found if row.model == model] or found)


def _taken() -> tuple[ColumnElement[Any], ...]:
    built = engines.c.built
    return (
        _of(built, "built_in_s").label("built_in_s"),
        (_of(built, "peak_bytes") + func.coalesce(_of(built, "device_bytes"), 0)).label("memory_bytes"),
    )


def _of(column: Any, path: str) -> ColumnElement[Any]:
    return func.json_extract(column, f"$.{path}")


def _size(model: Digest) -> Any:
    return select(models.c.size_bytes).where(models.c.digest == model).scalar_subquery()


def _median(rows: Sequence[Row[Any]]) -> SimilarBuilds | None:
    if not rows:
        return None
    memory = [row.memory_bytes for row in rows if row.memory_bytes is not None]
    return SimilarBuilds(len(rows), median(row.built_in_s for row in rows), int(median(memory)) if memory else None)
