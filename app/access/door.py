"""The door: every request, by whatever protocol, passes `authorised` before anything else happens to it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from app.access.addresses import neighbourhood
from app.access.buckets import Buckets
from app.access.keyring import KeyRing
from app.access.origins import Origins
from app.access.routes import Rule, rule_of
from app.access.uploads import UploadSlots
from app.domain.access import ALL_ROLES, Role, Visitor
from app.domain.errors import KeyMissing, KeyUnknown, RateLimited, RoleMissing, TooManyAttempts

log = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]  # names in lower case

ANONYMOUS = "anonymous"
BURST_S = 2.0  # a client that was silent may send what it could have sent in so long
_TELLING = frozenset({b"authorization", b"x-api-key", b"host", b"origin", b"sec-fetch-site"})


@dataclass(frozen=True)
class Policy:
    """What the owner decided."""

    is_local: bool  # the server listens on loopback only
    allow_anonymous: bool  # nobody has to show a key
    anonymous_roles: frozenset[Role]  # of requests without a key, once keys were made
    key_attempts_per_min: int  # unknown keys that an address may show; 0: no limit
    key_requests_per_s: float  # of one key that has no limit of its own; 0: no limit
    address_requests_per_s: float  # 0: no limit


class Shown(NamedTuple):
    """What the headers say of who asks."""

    key: bytes | None  # in `Authorization: Bearer`, else in `X-API-Key`
    host: bytes | None
    origin: bytes | None
    site: bytes | None

    @classmethod
    def by(cls, headers: Headers) -> Shown:
        found = {name: value for name, value in headers if name in _TELLING}
        scheme, _, key = found.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            key = found.get(b"x-api-key", b"")
        return cls(key.strip() or None, found.get(b"host"), found.get(b"origin"), found.get(b"sec-fetch-site"))


class Door:
    """Decides by one table, the keys and the policy. Any thread may ask."""

    def __init__(self, policy: Policy, keys: KeyRing, origins: Origins, uploads: UploadSlots) -> None:
        self._policy = policy
        self._keys = keys
        self._origins = origins
        self._uploads = uploads
        self._attempts = Buckets()
        self._requests = Buckets()
        self._strangers = {
            roles: Visitor(ANONYMOUS, None, roles) for roles in (ALL_ROLES, policy.anonymous_roles, frozenset[Role]())
        }

    def authorised(self, method: str, path: str, headers: Headers | Shown, client: str) -> Visitor:
        """Who makes this request, if they may.

        Args:
            method: in capitals.
            path: decoded, without the query.
            headers: of the request; or what they show, where they have been read before.
            client: the peer's network address; "" when it has none.

        Raises:
            KeyMissing, KeyUnknown, KeyExpired: it is not known who asks.
            RoleMissing: the key is not for this.
            HostRefused, CrossSiteRefused: a browser was made to send it.
            RateLimited, TooManyAttempts: later, perhaps.
        """
        rule = rule_of(method, path)
        if rule.is_open:
            return self._strangers[self._anonymous_roles()]
        shown = headers if isinstance(headers, Shown) else Shown.by(headers)
        if shown.key is None:
            visitor = self._stranger(rule)
            self._origins.check_host(shown.host)  # who shows a key is no page that only borrows the browser
        else:
            visitor = self._holder(shown.key, client)
            _check_role(rule, visitor)
        self._origins.check_site(method, shown.host, shown.origin, shown.site)
        self._check_rate(visitor, client)
        return visitor

    def upload_slot(self, visitor: Visitor, client: str) -> AbstractContextManager[None]:
        """Held while the visitor uploads; entering raises TooManyUploads."""
        return self._uploads.slot(visitor.key_id or neighbourhood(client))

    def _check_rate(self, visitor: Visitor, client: str) -> None:
        key_per_s = visitor.requests_per_s or self._policy.key_requests_per_s
        if key_per_s and visitor.key_id is not None:
            self._take(f"key {visitor.key_id}", key_per_s)
        if self._policy.address_requests_per_s:
            self._take(neighbourhood(client), self._policy.address_requests_per_s)

    def _take(self, name: str, per_s: float) -> None:
        wait_s = self._requests.take(name, per_s, max(1.0, per_s * BURST_S))
        if wait_s:
            raise RateLimited(
                f"Requests come faster than the {per_s:g} a second that this client may send.",
                hint="Wait before the next one; several images fit into one request.",
                retry_after_s=math.ceil(wait_s),
            )

    def _stranger(self, rule: Rule) -> Visitor:
        roles = self._anonymous_roles()
        if rule.roles.isdisjoint(roles) and Role.ADMIN not in roles:
            raise KeyMissing(
                f"{rule.method} {rule.path[:200]} wants an API key with the role"
                f" {_listed(rule.roles | {Role.ADMIN}, ' or ')}.",
                hint="Send it as Authorization: Bearer …; jetforge keys add makes one on the device.",
            )
        return self._strangers[roles]

    def _anonymous_roles(self) -> frozenset[Role]:
        if self._policy.allow_anonymous or (self._policy.is_local and not self._keys.has_keys):
            return ALL_ROLES
        return self._policy.anonymous_roles

    def _holder(self, key: bytes, client: str) -> Visitor:
        """Who shows the key. One that is known always opens: an address cannot lock out its neighbours.

        Guessing 256 random bits is hopeless; the limit keeps it from costing work and filling the log.
        """
        try:
            return self._keys.visitor(key)
        except KeyUnknown:
            per_min = self._policy.key_attempts_per_min
            wait_s = self._attempts.take(neighbourhood(client), per_min / 60, per_min) if per_min else 0
            if wait_s:
                raise TooManyAttempts(
                    "Too many unknown API keys were shown from this address.",
                    hint="Check the key; wait before the next attempt.",
                    retry_after_s=math.ceil(wait_s),
                ) from None
            log.warning("unknown API key", extra={"address": client})
            raise


def _check_role(rule: Rule, visitor: Visitor) -> None:
    if rule.roles.isdisjoint(visitor.roles) and Role.ADMIN not in visitor.roles:
        raise RoleMissing(
            f"The key {visitor.name} has the roles {_listed(visitor.roles)}; {rule.method} {rule.path[:200]}"
            f" wants {_listed(rule.roles | {Role.ADMIN}, ' or ')}.",
            hint="Use another key, or have one made on the device: jetforge keys add NAME --role …",
            who=visitor.name,
        )


def _listed(roles: Iterable[Role], separator: str = ", ") -> str:
    return separator.join(sorted(role.value for role in roles))
