"""Forks: what the nursery's process does, and what a process is that was just forked.

The nursery sleeps in one thread, so that it can fork at any time. Replicas are its children: only it reaps them, when
it is asked to, so that it cannot take another process for one of them; and the kernel ends them with it.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from app.build.process import die_with_parent
from app.replicas.channel import MESSAGE_BYTES_MAX, pair
from app.replicas.messages import Born, End, ToNursery
from app.replicas.process import run
from app.settings import Settings

log = logging.getLogger(__name__)


def be(work: Callable[[], None]) -> NoReturn:
    """Do this and end: what else the process would do that was forked here is not this one's business."""
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        log.exception("a forked process failed")
    finally:
        os._exit(status)


def nurse(settings: Settings, end: socket.socket, service: int) -> None:
    """Fork and end replicas as the service's process asks, until it is gone.

    Args:
        end: of what that process reaches this one by.
        service: its id.
    """
    die_with_parent(service)  # whatever keeps this process from noticing
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # also in replicas: these ask the service's process, which ends them all
    while message := _next(end):
        if isinstance(message, End):
            os.kill(message.pid, signal.SIGKILL)
            os.waitpid(message.pid, 0)
        else:
            _bear(settings, end)


def _next(end: socket.socket) -> ToNursery | None:
    """None: there will be no other."""
    try:
        data = end.recv(MESSAGE_BYTES_MAX)
    except ConnectionResetError:  # it did not wait for what it had asked for
        return None
    message: ToNursery | None = pickle.loads(data) if data else None  # noqa: S301  # as in Channel
    return message


def _bear(settings: Settings, end: socket.socket) -> None:
    nursery = os.getpid()
    mine, its = pair()
    with mine, its:
        try:
            pid = os.fork()
        except OSError as error:
            _tell(end, Born(None, str(error)))
            return
        if pid == 0:
            end.close()
            mine.close()
            be(partial(_replica, settings, its, nursery))
        _tell(end, Born(pid), mine)


def _tell(end: socket.socket, born: Born, *sockets: socket.socket) -> None:
    try:
        socket.send_fds(end, [pickle.dumps(born)], [one.fileno() for one in sockets])
    except (BrokenPipeError, ConnectionResetError):
        return  # which is noticed next


def _replica(settings: Settings, end: socket.socket, nursery: int) -> None:
    die_with_parent(nursery)  # as above
    run(settings, end)
