"""Names that a client writes and that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def no_such(kind: str, name: str, known: Sequence[str]) -> str:
    """`There is no option 'precison'; did you mean precision?`, or only that there is none."""
    near = difflib.get_close_matches(name[:80].lower(), known, n=1)
    return f"There is no {kind} {name[:80]!r}" + (f"; did you mean {near[0]}?" if near else ".")
