"""Log lines: one event, one line, with its fields: as key=value for people, or as a JSON object for programs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any

request_id: ContextVar[str] = ContextVar("request_id", default="")  # of the request that is answered; empty: none
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class LineFormatter(logging.Formatter):
    """`2026-01-31 12:00:00 info app.worker: build started job=ab12 engine=digits`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return super().formatMessage(record) + "".join(f" {name}={_text(value)}" for name, value in _fields(record))


class JsonFormatter(logging.Formatter):
    """`{"at": "2026-01-31T12:00:00.123456+00:00", "level": "info", "logger": …, "message": …, "job": "ab12"}`"""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _fields(record):
            line.setdefault(name, value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


FORMATTERS: dict[str, type[logging.Formatter]] = {"text": LineFormatter, "json": JsonFormatter}


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    """What the event was logged with, and the request that it belongs to."""
    yield from ((name, value) for name, value in vars(record).items() if name not in _STANDARD)
    if request := request_id.get():
        yield "request", request


def _text(value: Any) -> str:
    """A value that cannot start a line of its own or be mistaken for another field."""
    text = str(value)
    return text if text.isprintable() and " " not in text and '"' not in text else json.dumps(text)


def config(level: str, form: str = "text") -> dict[str, Any]:
    """For logging.config.dictConfig and for uvicorn: everything to stderr.

    Args:
        form: one of FORMATTERS.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": FORMATTERS[form]}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {
            "uvicorn.error": {"level": level.upper()},
            "uvicorn.access": {"level": "WARNING"},
            "alembic": {"level": "WARNING"},
            "httpx": {"level": "WARNING"},  # it writes whole addresses, and those of webhooks may hold a secret
            "httpcore": {"level": "WARNING"},
        },
    }
