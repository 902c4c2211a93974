"""The one table of what each role may do. docs/access.md shows it (tested); what is not listed needs `admin`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from app.domain.access import Role

OPEN: frozenset[Role] = frozenset()  # no key is asked for
ADMIN = frozenset({Role.ADMIN})
BUILD = frozenset({Role.BUILD})
WATCH = frozenset({Role.READ, Role.BUILD})
LOOK = frozenset({Role.READ, Role.INFER, Role.BUILD})
RUN = frozenset({Role.INFER})
WARM = frozenset({Role.INFER, Role.BUILD})

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Rule:
    """Who may make a request. Any one of the roles is enough, and `admin` always is."""

    method: str
    path: str  # as the application declares it
    roles: frozenset[Role]
    changes: bool = False  # it goes into the audit log
    uploads: bool = False  # it counts among the uploads that run at once

    @property
    def is_open(self) -> bool:
        return not self.roles


def _rules(roles: frozenset[Role], *requests: str, changes: bool = False, uploads: bool = False) -> Iterable[Rule]:
    for request in requests:
        method, path = request.split(" ")
        yield Rule(method, path, roles, changes, uploads)


RULES: tuple[Rule, ...] = (
    *_rules(OPEN, "GET /healthz", "GET /readyz", "GET /v2/health/live", "GET /v2/health/ready"),
    *_rules(OPEN, "GET /docs", "GET /docs/errors", "GET /docs/oauth2-redirect", "GET /redoc", "GET /openapi.json"),
    *_rules(OPEN, "GET /", "GET /static/{rest:path}"),  # the dashboard's own files hold no data
    *_rules(LOOK, "GET /device", "GET /engines", "GET /engines/{ref}"),
    *_rules(LOOK, "GET /v2", "GET /v2/models/stats", "POST /v2/repository/index"),
    *_rules(LOOK, "GET /v2/models/{model}", "GET /v2/models/{model}/versions/{version}"),
    *_rules(LOOK, "GET /v2/models/{model}/ready", "GET /v2/models/{model}/versions/{version}/ready"),
    *_rules(LOOK, "GET /v2/models/{model}/config", "GET /v2/models/{model}/versions/{version}/config"),
    *_rules(LOOK, "GET /v2/models/{model}/stats", "GET /v2/models/{model}/versions/{version}/stats"),
    *_rules(LOOK, "GET /v2/logging", "POST /v2/logging", "GET /v2/trace/setting", "POST /v2/trace/setting"),
    *_rules(LOOK, "GET /v2/models/{model}/trace/setting", "POST /v2/models/{model}/trace/setting"),
    *_rules(LOOK, "GET /v2/systemsharedmemory/{rest:path}", "POST /v2/systemsharedmemory/{rest:path}"),
    *_rules(LOOK, "GET /v2/cudasharedmemory/{rest:path}", "POST /v2/cudasharedmemory/{rest:path}"),
    *_rules(WATCH, "GET /jobs", "GET /jobs/{job_id}", "GET /jobs/{job_id}/log", "GET /jobs/{job_id}/events"),
    *_rules(WATCH, "GET /models", "GET /models/{model_id}", "GET /calibrations", "GET /calibrations/{calibration_id}"),
    *_rules(WATCH, "GET /calibrations/{calibration_id}/preview", "GET /events", "GET /status", "GET /metrics"),
    *_rules(RUN, "POST /infer/{ref}"),
    *_rules(RUN, "POST /v2/models/{model}/infer", "POST /v2/models/{model}/versions/{version}/infer"),
    *_rules(WARM, "POST /engines/{ref}/load", "POST /v2/repository/models/{model}/load", changes=True),
    *_rules(BUILD, "POST /engines/{ref}/unload", "POST /v2/repository/models/{model}/unload", changes=True),
    *_rules(BUILD, "POST /jobs", "POST /models", "POST /calibrations", "POST /engines", changes=True, uploads=True),
    *_rules(BUILD, "DELETE /jobs/{job_id}", "POST /jobs/{job_id}/retry", changes=True),
    *_rules(BUILD, "DELETE /models/{model_id}", "DELETE /calibrations/{calibration_id}", changes=True),
    *_rules(BUILD, "DELETE /engines/{ref}", changes=True),
    *_rules(BUILD, "GET /engines/{ref}/file"),
    *_rules(ADMIN, "GET /audit"),
    *_rules(ADMIN, "POST /gc", changes=True),
)


@lru_cache(maxsize=4096)
def rule_of(method: str, path: str) -> Rule:
    """The rule for a request.

    Args:
        method: in capitals, as HTTP writes it; HEAD counts as GET.
        path: decoded, without the query.
    """
    asked = "GET" if method == "HEAD" else method
    for rule, pattern in _PATTERNS:
        if rule.method == asked and pattern.fullmatch(path):
            return rule
    return Rule(asked, path, ADMIN, changes=asked not in SAFE_METHODS)


def methods_at(path: str) -> list[str]:
    """The methods that the path takes; none when nothing is listed there."""
    return sorted({rule.method for rule, pattern in _PATTERNS if pattern.fullmatch(path)})


def _pattern(path: str) -> re.Pattern[str]:
    """What a declared path matches: `{name}` one segment, `{name:path}` all the rest."""
    parts = re.split(r"(\{\w+(?::path)?\})", path)
    return re.compile("".join(_part(part) for part in parts), re.DOTALL)


def _part(part: str) -> str:
    if not part.startswith("{"):
        return re.escape(part)
    return ".*" if part.endswith(":path}") else "[^/]+"


_PATTERNS = [(rule, _pattern(rule.path)) for rule in RULES]
