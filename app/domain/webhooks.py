"""Webhooks: which addresses may be told of a job's end, and how what is told is signed."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TypeAlias
from urllib.parse import unquote

from app.domain.errors import WebhookRefused

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

URL_MAX = 2000
SECRET_MIN = 16
SIGNATURE = "X-Jetforge-Signature"
# Narrower than any URL parser: no user, no blanks, no backslash, nothing that two parsers could read in two ways.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[A-Za-z0-9/_.~!$&'()*+,;=:@%-]*)?(?P<query>\?[A-Za-z0-9/?_.~!$&'()*+,;=:@%-]*)?",
    re.IGNORECASE,
)
_TUNNELS = tuple(ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))


class DeliveryState(str, Enum):
    WAITING = "waiting"  # for the job's end
    PENDING = "pending"  # to be sent, again perhaps
    DELIVERED = "delivered"
    FAILED = "failed"  # given up


@dataclass(frozen=True)
class Delivery:
    """What has become of a job's webhook."""

    job: str
    url: str
    state: DeliveryState
    attempts: int  # since the job's last end
    status: int | None  # of the last answer; None: there was none
    error: str | None  # why the last attempt failed
    next_at: datetime | None  # of the next attempt, while it is pending


@dataclass(frozen=True)
class Target:
    """A URL, taken apart."""

    scheme: str
    host: str  # lower case, without brackets
    port: int
    path: str  # with the query; at least "/"

    @property
    def authority(self) -> str:
        """As in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"


@dataclass(frozen=True)
class WebhookRules:
    """Where webhooks may go. Without targets there are none."""

    targets: tuple[Target, ...] = ()  # a URL has to begin like one of them
    networks: tuple[Network, ...] = ()  # addresses that are not public and may be connected to all the same
    default_url: str = ""  # of jobs that name none

    def checked(self, url: str | None) -> str | None:
        """The webhook of a job: the URL, or the default where it is None; None for none, as "" says.

        Raises:
            WebhookRefused: no target allows it.
        """
        wanted = self.default_url if url is None else url
        if not wanted:
            return None
        found = parsed(wanted)
        if not any(_begins_like(found, target) for target in self.targets):
            raise WebhookRefused(
                f"Webhooks to {found.scheme}://{found.authority} are not allowed.",
                hint="The owner of the device lists what is allowed in webhook_targets.",
            )
        return wanted

    def allows(self, address: Address) -> bool:
        """Whether a connection to this very address may be made: it is public, or in one of the networks."""
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            return self.allows(address.ipv4_mapped)
        if any(address in network for network in self.networks):
            return True
        is_tunnelled = any(
            address in network for network in _TUNNELS
        )  # its end is another address, perhaps a private one
        return address.is_global and not (address.is_multicast or address.is_reserved or is_tunnelled)


def parsed(url: str) -> Target:
    """Take a URL apart.

    Raises:
        WebhookRefused: it is not one, or could be read in two ways.
    """
    match = _URL.fullmatch(url) if len(url) <= URL_MAX else None
    port = int(match["port"]) if match is not None and match["port"] else 0
    path = (match["path"] or "/") if match is not None else ""
    if match is None or port > 65535 or any(part in (".", "..") for part in unquote(path).split("/")):
        raise WebhookRefused(
            f"{url[:100]!r} is not an address that a webhook can have.",
            hint="Write it like https://hooks.example.com/jetforge, in ASCII, without a user or a step of dots.",
        )
    scheme = match["scheme"].lower()
    host = match["host"].lower().strip("[]")
    return Target(scheme, host, port or _default_port(scheme), path + (match["query"] or ""))


def parsed_targets(text: str) -> tuple[Target, ...]:
    """Targets separated by commas: a URL that others have to begin like, or a host name, which means https.

    Raises:
        WebhookRefused: one of them cannot be read.
    """
    entries = filter(None, (entry.strip() for entry in text.split(",")))
    return tuple(parsed(entry if "://" in entry else f"https://{entry}") for entry in entries)


def parsed_networks(text: str) -> tuple[Network, ...]:
    """Networks separated by commas; ValueError for one that cannot be read."""
    return tuple(ipaddress.ip_network(entry.strip()) for entry in text.split(",") if entry.strip())


def signature(secret: str, at_s: int, body: bytes) -> str:
    """The value of the signature header: `t=<Unix time>,v1=<HMAC-SHA256 of "<t>." and the body, in hex>`."""
    signed = hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256)
    return f"t={at_s},v1={signed.hexdigest()}"


def backoff_s(attempts: int, first_s: float = 5, most_s: float = 3600) -> float:
    """How long to wait after so many attempts: 5 s, 20 s, 80 s …, an hour at most."""
    return float(min(most_s, first_s * 4 ** max(0, attempts - 1)))


def acceptable(addresses: Sequence[str], rules: WebhookRules) -> str | None:
    """The first of these addresses that may be connected to."""
    return next((text for text in addresses if rules.allows(ipaddress.ip_address(text.partition("%")[0]))), None)


def _begins_like(url: Target, target: Target) -> bool:
    if (url.scheme, url.host, url.port) != (target.scheme, target.host, target.port):
        return False
    beginning = target.path if target.path.endswith("/") else f"{target.path}/"
    return url.path.partition("?")[0] == target.path or url.path.startswith((beginning, f"{target.path}?"))


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
