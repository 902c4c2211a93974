"""Request ids: a client's own when it is sane, else one that is made here. Callable from any protocol."""

from __future__ import annotations

import re
import secrets
from itertools import count

HEADER = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")  # nothing that could end a log line, a header or a field
_START = secrets.token_hex(4)  # another in every process
_next = count(1).__next__


def restart() -> None:
    """For a process that was forked from one that makes ids as well."""
    global _START
    _START = secrets.token_hex(4)


def request_id(sent: bytes | None) -> str:
    """The id that a request goes by in its answer, in problems and in the log.

    Args:
        sent: the value of its X-Request-ID header; None: it has none.
    """
    if sent is not None and _SANE.fullmatch(sent):
        return sent.decode("ascii")
    return f"{_START}{_next():08x}"
