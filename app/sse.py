"""Server-sent events of a job, read on the client's side. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened to a job.

    `kind` is state, stage, step or warning (`data` has seq, job, at, stage, message), log (`data` has line), job
    (the whole job, asked for while the stream was broken) or end (the whole job; nothing follows).
    """

    kind: str
    data: dict[str, Any]


class EventReader:
    """Turns a job's event streams into events, leaving out those that an earlier stream brought already.

    Every stream starts with the job's history: events carry a growing `seq`, log lines are counted.
    """

    def __init__(self) -> None:
        self._seq = 0
        self._lines = 0

    def new_events(self, chunks: Iterable[bytes]) -> Iterator[Event]:
        lines = 0
        for kind, text in server_sent(chunks):
            data = json.loads(text)
            if kind == "log":
                lines += 1
                if lines <= self._lines:
                    continue
                self._lines = lines
            elif "seq" in data:
                if data["seq"] <= self._seq:
                    continue
                self._seq = data["seq"]
            yield Event(kind, data)


def server_sent(chunks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """The (event, data) pairs of a text/event-stream, wherever its bytes are cut.

    Source:
        WHATWG HTML, 9.2.6 "Interpreting an event stream"; a carriage return alone ends no line here.
    """
    kind, data = "message", list[str]()
    for line in _lines(chunks):
        if not line:
            if data:
                yield kind, "\n".join(data)
            kind, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            data.append(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:  # not httpx's iter_lines: it also cuts at U+2028 and its like, which JSON may hold
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode(errors="replace")
