"""Courier: tells webhooks of the ends of jobs, from a thread of the worker."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import ssl
import threading
import time
from typing import Any

import httpx

from app import __version__
from app.domain.errors import ServiceError
from app.domain.jobs import Job
from app.domain.webhooks import SIGNATURE, Delivery, WebhookRules, acceptable, backoff_s, parsed, signature
from app.storage.jobs import JobQueue
from app.storage.webhooks import Webhooks

log = logging.getLogger(__name__)

IDLE_S = 1.0  # between two looks for what is due
STOP_S = 5.0  # for what is being sent when the worker stops; it is sent again by the next one


class Courier:
    """Sends what is due, one after another, each at least once: a receiver tells doubles by their delivery id."""

    def __init__(
        self,
        webhooks: Webhooks,
        queue: JobQueue,
        rules: WebhookRules,
        *,
        device: str,
        secret: str,
        attempts_max: int,
        timeout_s: float,
    ) -> None:
        self._webhooks = webhooks
        self._queue = queue
        self._rules = rules
        self._device = device
        self._secret = secret
        self._attempts_max = attempts_max
        self._timeout_s = timeout_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(STOP_S)

    def deliver_next(self) -> bool:
        """Send one webhook that is due; False when there is none."""
        claimed = self._webhooks.claim(lease_s=2 * self._timeout_s)
        if claimed is None:
            return False
        status, error = self._sent(claimed, self._queue.get(claimed.job))
        again_in_s = None
        if error is not None and claimed.attempts < self._attempts_max:
            again_in_s = backoff_s(claimed.attempts) * random.uniform(0.8, 1.2)  # noqa: S311, spreads, hides nothing
        self._webhooks.settle(claimed, status, error, again_in_s)
        fields = {"job": claimed.job, "attempt": claimed.attempts, "status": status, "error": error}
        log.info("webhook sent", extra={name: value for name, value in fields.items() if value is not None})
        return True

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                was_due = self.deliver_next()
            except ServiceError as error:
                log.error("webhooks not reachable", extra={"code": error.code, "detail": error.detail})
                was_due = False
            except Exception:
                log.exception("a webhook met an unexpected error")
                was_due = False
            if not was_due:
                self._stopping.wait(IDLE_S)

    def _sent(self, claimed: Delivery, job: Job) -> tuple[int | None, str | None]:
        """Status of the answer, and why it counts as failed; None: it does not."""
        at_s = int(time.time())
        body = json.dumps(told(job, self._device, at_s)).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"jetforge/{__version__}",
            "X-Jetforge-Delivery": delivery_id(job),
            SIGNATURE: signature(self._secret, at_s, body),
        }
        try:
            self._rules.checked(claimed.url)  # the owner may have changed the targets since
            status = asyncio.run(posted(claimed.url, body, headers, self._rules, self._timeout_s))
        except ServiceError as error:
            return None, error.detail
        except asyncio.TimeoutError:
            return None, f"no answer within {self._timeout_s:g} s"
        except AddressRefused as error:
            return None, f"refused: {error}"
        except (httpx.HTTPError, OSError) as error:
            is_stranger = "CERTIFICATE_VERIFY_FAILED" in str(error)
            return None, "its certificate is not trusted" if is_stranger else f"not reachable ({type(error).__name__})"
        return status, None if 200 <= status < 300 else f"answered {status}"


def delivery_id(job: Job) -> str:
    """The same for every attempt to tell of one end of the job."""
    return f"{job.id}-{int(job.finished_at.timestamp() * 1000) if job.finished_at else 0}"


def told(job: Job, device: str, at_s: int) -> dict[str, Any]:
    """What a webhook says."""
    return {
        "event": f"job.{job.state.value}",
        "delivery": delivery_id(job),
        "sent_at": at_s,
        "device": device,
        "job": {
            "id": job.id,
            "name": job.name,
            "state": job.state.value,
            "engine": job.engine,
            "attempt": job.attempt,
            "failure": None
            if job.failure is None
            else {"code": job.failure.code, "message": job.failure.message, "hint": job.failure.hint},
            "created_at": job.created_at.isoformat(),
            "finished_at": job.finished_at.isoformat() if job.finished_at else None,
        },
    }


async def posted(url: str, body: bytes, headers: dict[str, str], rules: WebhookRules, timeout_s: float) -> int:
    """Send the body and return the answer's status. The answer itself is not read, and no redirect is followed.

    Raises:
        AddressRefused: the host has no address that may be connected to.
        asyncio.TimeoutError, httpx.HTTPError, OSError: no answer.
    """
    return await asyncio.wait_for(_posted(url, body, headers, rules), timeout_s)


class AddressRefused(OSError):
    """A host's name stands for addresses that webhooks may not go to."""


async def _posted(url: str, body: bytes, headers: dict[str, str], rules: WebhookRules) -> int:
    target = parsed(url)
    found = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    address = acceptable([str(entry[4][0]) for entry in found], rules)
    if address is None:
        raise AddressRefused(f"{target.host} has no address that webhooks may go to")
    # The address that was looked at is the one that is connected to: a name could be another's by then. The name
    # goes where a server and its certificate want it.
    place = f"[{address}]" if ":" in address else address
    request_url = f"{target.scheme}://{place}:{target.port}{target.path}"
    timeout = httpx.Timeout(None)  # the caller's covers all of it
    verify = ssl.create_default_context() if target.scheme == "https" else False
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout, verify=verify) as client:
        request = client.build_request(
            "POST",
            request_url,
            content=body,
            headers={**headers, "Host": target.authority},
            extensions={"sni_hostname": target.host},
        )
        response = await client.send(request, stream=True)
        await response.aclose()
        return response.status_code
