"""A file's name sent in the place of the file, as curl does where the @ is missing."""

from __future__ import annotations

import re

AT_MISSING = "With curl, put @ before the file's name."

_BYTES_MAX = 256
_NAME = re.compile(rb"[^\x00-\x1f\"<>|*?]+\.[A-Za-z0-9]{1,8}\s?")


def is_file_name(data: bytes | memoryview) -> bool:
    """Whether an upload is nothing but what reads as the name of a file."""
    return len(data) <= _BYTES_MAX and _NAME.fullmatch(data) is not None
