"""How long a build takes, told from builds like it on this device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from app.api.services import Services
from app.domain.builds import Digest, Precision
from app.domain.errors import BackendMissing
from app.domain.jobs import Job


def estimated_s(wired: Services, job: Job) -> float | None:
    """How long builds like this one took, from their start to their end, in the median.

    None when there were none, or the job has ended.
    """
    return estimator(wired)(job)


def estimator(wired: Services) -> Callable[[Job], float | None]:
    """`estimated_s` for a page of jobs: builds that are alike are looked up once."""

    @cache
    def looked_up(model: Digest, backend: str, precision: Precision) -> float | None:
        try:
            similar = wired.history.similar(model, backend, precision)
        except BackendMissing:
            return None
        return round(similar.built_in_s, 1) if similar else None

    def estimate(job: Job) -> float | None:
        if job.state.is_final:
            return None
        return looked_up(job.model, job.options.backend, job.options.precision)

    return estimate
