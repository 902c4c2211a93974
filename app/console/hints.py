"""The service's hints as the command line says them: it speaks of requests, and here somebody types commands."""

from __future__ import annotations

import re

_REF = r"([\w{}.:-]*[\w{}])"  # an id, a name with its version, or a place for one
_END = r"(?![\w{}/?])"  # what goes on has no verb
_WORDS = (
    (rf"GET /device{_END}", "jetforge doctor"),
    (rf"GET /(jobs|engines){_END}", r"jetforge \1"),
    (rf"GET /(jobs|engines)/{_REF}{_END}", r"jetforge \1 \2"),
    (rf"POST /engines/{_REF}/(load|unload){_END}", r"jetforge engines \1 --\2"),
    (rf"POST /jobs{_END}", "jetforge build"),
    (r"-F calibration=@", "--calibration "),
    (r"-F (\w+_shapes)=", r"--option \1="),
)


def typed(hint: str) -> str:
    """The hint with commands in place of requests, as far as there are such commands."""
    for request, command in _WORDS:
        hint = re.sub(request, command, hint)
    return hint
