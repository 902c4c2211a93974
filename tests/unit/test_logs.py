"""Log lines and request ids: what a line holds, and what it cannot be made to hold."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import copy_context

import pytest

from app import logs
from app.api.request_ids import request_id


def line(form: str, message: str, **fields: object) -> str:
    record = logging.makeLogRecord({"name": "app.worker", "levelname": "WARNING", "msg": message, **fields})
    return logs.FORMATTERS[form]().format(record)


def test_a_json_line_holds_the_event_its_fields_and_its_request() -> None:
    def within_a_request() -> str:
        logs.request_id.set("r-1")
        return line("json", "build failed", job="ab12", engine="digits")

    found = json.loads(copy_context().run(within_a_request))

    assert found.pop("at").endswith("+00:00")
    assert found == {
        "level": "warning",
        "logger": "app.worker",
        "message": "build failed",
        "job": "ab12",
        "engine": "digits",
        "request": "r-1",
    }


def test_a_json_line_with_a_traceback_is_still_one_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        text = line("json", "it broke", exc_info=sys.exc_info())

    assert "\n" not in text
    assert "ValueError: two\nlines" in json.loads(text)["exception"]


@pytest.mark.parametrize("form", logs.FORMATTERS)
def test_a_value_cannot_start_a_line_of_its_own(form: str) -> None:
    assert "\n" not in line(form, "upload refused", name_sent='a\n2026-01-01 info: forged "x"=1')


def test_a_field_cannot_hide_what_every_line_has() -> None:
    assert json.loads(line("json", "true", level="forged", at="never"))["level"] == "warning"


def test_a_sane_request_id_is_taken_over() -> None:
    assert request_id(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").startswith("00-4bf9")


@pytest.mark.parametrize("sent", [None, b"", b"a b", b"a\nb", b'"', b"\xff", b"x" * 129])
def test_any_other_is_replaced_by_one_of_its_own(sent: bytes | None) -> None:
    made = {request_id(sent) for _ in range(100)}

    assert len(made) == 100
    assert all(len(name) == 16 and name.isalnum() for name in made)
