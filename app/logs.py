"""Log lines: one event, one line, its fields behind it as key=value."""

from __future__ import annotations

import json
import logging
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class LineFormatter(logging.Formatter):
    """`2026-01-31 12:00:00 info app.worker: build started job=ab12 engine=digits`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        fields = (f" {name}={_text(value)}" for name, value in vars(record).items() if name not in _STANDARD)
        return super().formatMessage(record) + "".join(fields)


def _text(value: Any) -> str:
    """A value that cannot start a line of its own or be mistaken for another field."""
    text = str(value)
    return text if text.isprintable() and " " not in text and '"' not in text else json.dumps(text)


def config(level: str) -> dict[str, Any]:
    """For logging.config.dictConfig and for uvicorn: everything to stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": LineFormatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {
            "uvicorn.error": {"level": level.upper()},
            "uvicorn.access": {"level": "WARNING"},
            "alembic": {"level": "WARNING"},
        },
    }
