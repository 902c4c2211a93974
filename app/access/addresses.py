"""Network addresses as far as access depends on them."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

_IPV6_SITE_BITS = 64  # what one customer gets at least: single addresses in it cost an attacker nothing


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=4096)
def neighbourhood(client: str) -> str:
    """What limits count as one address: an IPv4 address, or the /64 around an IPv6 address."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_SITE_BITS), strict=False))
