"""What a browser may be made to send: requests under a foreign name, and writes from a foreign page.

A page anywhere can post forms to http://127.0.0.1:8000, and a name that its owner points at 127.0.0.1 ("DNS
rebinding") makes the browser take this service for a part of that page. A program sends neither Origin nor
Sec-Fetch-Site, so it notices nothing of these checks.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from app.access.routes import SAFE_METHODS
from app.domain.errors import CrossSiteRefused, HostRefused, StartRefused

ANY = "*"


class Origins:
    """The names under which this service is reached, and the pages that may write to it."""

    def __init__(self, hosts: Iterable[str], origins: Iterable[str]) -> None:
        """
        Args:
            hosts: names beside loopback, this machine's own and addresses; ".example.com" is all below it, "*" any.
            origins: of pages, as https://fleet.example.com; "*" any.

        Raises:
            StartRefused: an origin is none.
        """
        own = socket.gethostname().lower()
        self._hosts = frozenset({own, f"{own.partition('.')[0]}.local", *(name.lower() for name in hosts)})
        self._origins = frozenset(_checked_origin(origin) for origin in origins)
        self._is_own = lru_cache(maxsize=1024)(self._names_this_service)

    def check_host(self, host: bytes | None) -> None:
        """Refuse a request under a name that is not this service's.

        Any address is taken, and any name without a dot: nobody on the internet can point those here.

        Raises:
            HostRefused: the name is foreign.
        """
        if host is not None and not self._is_own(host):
            raise HostRefused(
                f"This service is not known as {_text(host)!r}.",
                hint="Use its address, or name it in JETFORGE_ALLOWED_HOSTS. With an API key any name is taken.",
            )

    def check_site(self, method: str, host: bytes | None, origin: bytes | None, site: bytes | None) -> None:
        """Refuse a write that a browser sends for another page.

        Args:
            origin: the header Origin.
            site: the header Sec-Fetch-Site.

        Raises:
            CrossSiteRefused: the page is foreign.
        """
        if method in SAFE_METHODS or (origin is None and site in (None, b"same-origin", b"none")):
            return
        if origin is not None and (_is_page_of(origin, host) or not self._origins.isdisjoint((_text(origin), ANY))):
            return
        raise CrossSiteRefused(
            f"A page of {_text(origin or b'another site')!r} asked for this.",
            hint="If it is yours, name it in JETFORGE_ALLOWED_ORIGINS.",
        )

    def _names_this_service(self, host: bytes) -> bool:
        name = _name(_text(host))
        if "." not in name or name in self._hosts or ANY in self._hosts or name.endswith(".localhost"):
            return True
        if any(known.startswith(".") and name.endswith(known) for known in self._hosts):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name(host: str) -> str:
    """The host of `host:port` or `[address]:port`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _is_page_of(origin: bytes, host: bytes | None) -> bool:
    return host is not None and _text(origin).partition("://")[2] == _text(host)


def _text(value: bytes) -> str:
    return value.decode("latin-1").lower()[:200]


def _checked_origin(origin: str) -> str:
    parts = urlsplit(origin)
    if origin != ANY and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query):
        raise StartRefused(
            f"JETFORGE_ALLOWED_ORIGINS names {origin[:80]!r}, which is no origin.",
            hint="Write https://fleet.example.com, with the port if there is one, without a path.",
        )
    return origin.lower()
