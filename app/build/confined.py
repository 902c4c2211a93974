"""The parent's side of a confined child: start it, talk with it, end it, and say why it ended."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import app
from app.build.channel import Channel, ChannelBroken, ChannelTimedOut, Message
from app.domain.errors import BuildFailed, BuildKilled, BuildTimedOut, ExportFailed
from app.domain.tensors import Tensors

log = logging.getLogger(__name__)

_CODE_ROOT = Path(app.__file__).parents[1]
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
_SIGNS_OF_WANT = ("bad_alloc", "allocate memory", "MemoryError")
_REAP_S = 5.0
_WORDS_MAX = 4000  # of what a child says
_FAILURES = {leaf.code: leaf for leaf in BuildFailed.__subclasses__()}


class ConfinedChild:
    """A process that opens one file, confined as `app.build.confine` says, with a scratch folder of its own.

    What it answers is a stranger's word: checked where it is read, and never unpickled.
    """

    def __init__(self, module: str, source: Path, folder: Path, request: Message, passed: tuple[int, ...] = ()) -> None:
        """Start `python -m module` and send it the request.

        Args:
            folder: where the scratch folder is made, and what the child says on stderr is kept.
            passed: open files that the child gets under the same numbers.
        """
        self._scratch = Path(tempfile.mkdtemp(prefix="confined-", dir=folder))
        self._log = self._scratch.with_suffix(".log")
        try:
            self._process, self.channel = _started(module, source, self._scratch, self._log, passed)
        except BaseException:
            self._remove_files()
            raise
        with suppress(ChannelBroken):  # it has ended already: receive() says why
            self.channel.send(request)

    def receive(self, deadline: float | None = None) -> tuple[Message, Tensors]:
        """The child's next message.

        Args:
            deadline: of time.monotonic().

        Raises:
            BuildFailed: the child says why it failed, or has ended, or the time is up.
        """
        try:
            message, tensors = self.channel.receive(deadline)
        except ChannelTimedOut as error:
            raise BuildTimedOut(
                "The uploaded model was still busy at its time limit.",
                hint="Allow more with timeout_s; a model that never comes to an end has to be mended first.",
            ) from error
        except ChannelBroken as error:
            raise self._end() from error
        if "failure" in message:
            raise _failure(message["failure"])
        return message, tensors

    def kill(self) -> None:
        """End the child now, whoever waits for its words; it is still to be closed."""
        self._process.kill()

    def close(self) -> None:
        """End the child, if it still runs, put what it printed into the log, and remove its files."""
        self.channel.close()
        self._process.kill()
        self._process.wait()
        if words := self._printed():
            log.info("%s", words)
        self._remove_files()

    def _end(self) -> BuildFailed:
        """Why the child ended without a word."""
        status = self._status()
        if status == -signal.SIGKILL or any(sign in self._printed() for sign in _SIGNS_OF_WANT):
            return BuildKilled(
                f"The process that opened the uploaded model {_how(status)}, most likely for want of memory: it may use"
                " 2 GiB and eight times the file.",
                hint="Give smaller shapes, or export the network to ONNX where it was trained and upload that.",
            )
        if status == -signal.SIGXCPU:
            return BuildTimedOut(
                "The uploaded model used all of the processor time that it may.",
                hint="Allow more with timeout_s; a model that never comes to an end has to be mended first.",
            )
        return ExportFailed(
            f"The process that opened the uploaded model {_how(status)}.",
            hint="Read the job's log; export the network to ONNX where it was trained and upload that.",
        )

    def _printed(self) -> str:
        """The end of what the child printed: any text at all, so only its printable part."""
        text = self._log.read_bytes()[-_WORDS_MAX:].decode(errors="replace")
        text = text.replace(f"{_CODE_ROOT}/", "").replace(f"{self._scratch}/", "")
        return "".join(c for c in text if c.isprintable() or c == "\n").strip()

    def _status(self) -> int | None:
        try:
            return self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:  # it closed its end and lives on: that is no reason to wait
            return None

    def _remove_files(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._log.unlink(missing_ok=True)


def _started(
    module: str, source: Path, scratch: Path, log: Path, passed: tuple[int, ...]
) -> tuple[subprocess.Popen[bytes], Channel]:
    theirs_read, ours_write = os.pipe()
    ours_read, theirs_write = os.pipe()
    command = [sys.executable, "-m", module, str(source), str(scratch), "--parent", str(os.getpid())]
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    try:
        with log.open("wb") as errors:
            process = subprocess.Popen(
                command,
                stdin=theirs_read,
                stdout=theirs_write,
                stderr=errors,
                cwd=_CODE_ROOT,  # never the scratch folder: Python would import what lies there
                env={**kept, **_environment(scratch)},
                pass_fds=passed,
            )
    except BaseException:
        os.close(ours_read)
        os.close(ours_write)
        raise
    finally:
        os.close(theirs_read)
        os.close(theirs_write)
    return process, Channel(ours_read, ours_write)


def _environment(scratch: Path) -> dict[str, str]:
    return {
        "PYTHONPATH": str(_CODE_ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch),  # made by torch when it is missing: this one is there
        "CUDA_VISIBLE_DEVICES": "",
    }


def _failure(words: object) -> BuildFailed:
    """What the child says of its failure, as far as it is one of the failures that it can have."""
    if isinstance(words, dict):
        leaf = _FAILURES.get(str(words.get("code")))
        if leaf is not None:
            return leaf(str(words.get("detail"))[:_WORDS_MAX], hint=str(words.get("hint"))[:_WORDS_MAX])
    return ExportFailed(
        "The process that opened the uploaded model failed in a way that it cannot tell.",
        hint="Export the network to ONNX where it was trained and upload that.",
    )


def _how(status: int | None) -> str:
    if status is None:
        return "went silent"
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status} and without an answer"
