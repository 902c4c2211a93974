"""ClientError: why a request of the client failed, and what of the transport and its answers becomes one."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import httpx

Json: TypeAlias = dict[str, Any]


class ClientError(Exception):
    """A request that failed: the service's own words, or why it could not be reached.

    `status` is the HTTP status, None when there was no answer. `code` is one of docs/errors.md, which has the client's
    own as well.
    """

    def __init__(self, code: str, detail: str, hint: str = "", status: int | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.hint = hint
        self.status = status

    @property
    def is_outage(self) -> bool:
        """Whether the service was out of reach or not itself, so that it may do better later."""
        return self.status is None or self.status >= 500

    def __str__(self) -> str:
        return f"{self.detail} [{self.code}]" + (f" {self.hint}" if self.hint else "")


@contextmanager
def reachable(base_url: str) -> Iterator[None]:
    """Turn the transport's errors into ClientError."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise ClientError(
            "timed_out", f"{base_url} did not answer in time.", "Try again, or ask with a longer timeout."
        ) from error
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise ClientError(
                "certificate_untrusted",
                f"The certificate of {base_url} is not trusted ({error}).",
                "Give the certificate, or that of its authority, with --cacert.",
            ) from error
        raise ClientError(
            "unreachable",
            f"No service answers at {base_url} ({error}).",
            "Is the service running? Start it with: jetforge serve",
        ) from error


def json_of(response: httpx.Response) -> Json:
    """The object that a success carries."""
    try:
        body = response.json() if response.content else {}
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise _unexpected(response)
    return body


def refusal(response: httpx.Response) -> ClientError:
    """The service's own words."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "code" not in problem:
        return _unexpected(response)
    detail = problem.get("detail") or problem.get("title") or f"HTTP {response.status_code}"
    return ClientError(str(problem["code"]), str(detail), str(problem.get("hint") or ""), response.status_code)


def _unexpected(response: httpx.Response) -> ClientError:
    request = response.request
    return ClientError(
        "unexpected_answer",
        f"{request.method} {request.url} answered {response.status_code}: {response.text[:200]!r}.",
        "Is this the address of a jetforge service?",
        response.status_code,
    )


def invalid_address(url: str) -> ClientError:
    return ClientError("invalid_address", f"{url!r} is not an address.", "Write it like http://127.0.0.1:8000")


def credentials(key: str) -> dict[str, str]:
    """The header that shows the key; none for "". Raises ClientError for what cannot be sent."""
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ClientError("invalid_key", "The API key has characters that no key has.", "Copy it again, whole.")
    return {"Authorization": f"Bearer {key}"}


def trusted(cacert: Path) -> ssl.SSLContext:
    """What trusts these certificates only. Raises ClientError when they cannot be read."""
    try:
        return ssl.create_default_context(cafile=str(cacert))
    except OSError as error:  # an SSLError too: the file holds no certificate
        raise ClientError(
            "file_unreadable",
            f"{cacert} cannot be read as certificates: {error.strerror or error}.",
            "It is a file in PEM format: -----BEGIN CERTIFICATE-----.",
        ) from error
