"""The child's side: confine this process, open the file, answer."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.build import confine
from app.build.channel import Channel, ChannelBroken, Message
from app.build.process import be_first_to_go, die_with_parent
from app.domain.errors import BuildFailed, ConfinementMissing

_BASE_BYTES = 2 << 30  # of address space: what torch and ONNX Runtime map before they have read a byte of the model,
_PER_FILE_BYTE = 8  # and copies of its weights while they export it


@dataclass(frozen=True)
class Confined:
    """What the work is done with, after this process has confined itself."""

    source: Path  # opened for reading, whatever the folders around it allow
    channel: Channel
    request: Message


def serve(module: str, imports: Callable[[Message], None], work: Callable[[Confined], None]) -> int:
    """Run a confined child: `python -m module SOURCE SCRATCH --parent PID`, its request the first message on stdin.

    Args:
        imports: loads what the work needs; it is done before system calls are given up.
        work: answers on the channel. A BuildFailed that it raises is told to the parent.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description="For the build; not to be started alone.")
    parser.add_argument("source", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    be_first_to_go()
    warnings.simplefilter("ignore")
    channel = _taken_channel()
    try:
        request, _ = channel.receive()
        confined = _confined(arguments.source, arguments.scratch, channel, request, imports)
        work(confined)
    except ChannelBroken:
        return 1
    except BuildFailed as error:
        channel.send({"failure": {"code": error.code, "detail": error.detail, "hint": error.hint}})
        return 3
    return 0


def _confined(
    source: Path, scratch: Path, channel: Channel, request: Message, imports: Callable[[Message], None]
) -> Confined:
    file = os.open(source, os.O_RDONLY)
    size_bytes = os.fstat(file).st_size
    limits = confine.Limits(
        memory_bytes=_BASE_BYTES + _PER_FILE_BYTE * size_bytes,
        cpu_s=int(request["cpu_s"]),
        written_bytes=(256 << 20) + 2 * size_bytes,
    )
    opened = Path(f"/proc/self/fd/{file}")
    missing = confine.enter(limits, (opened,), scratch)
    tempfile.tempdir = str(scratch)  # asking for it later would try to write a file
    imports(request)
    missing += confine.seal()
    if missing and request.get("require_confinement"):
        raise ConfinementMissing(
            f"This system does not let a process give up: {', '.join(missing)}.",
            hint="Upload ONNX, or unset JETFORGE_REQUIRE_CONFINEMENT if every uploader is trusted.",
        )
    channel.send({"missing": missing})
    return Confined(opened, channel, request)


def _taken_channel() -> Channel:
    """stdin and stdout, out of the way of whatever prints: that goes to stderr from now on."""
    channel = Channel(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    sys.stdout = sys.stderr
    return channel
