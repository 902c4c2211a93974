"""The door: every request, by whatever protocol, passes `authorised` before anything else happens to it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

from app.access.addresses import neighbourhood
from app.access.buckets import Buckets
from app.access.keyring import KeyRing
from app.access.routes import Rule, rule_of
from app.domain.access import ALL_ROLES, Role, Visitor
from app.domain.errors import KeyMissing, KeyUnknown, RoleMissing, TooManyAttempts

log = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]  # names in lower case

ANONYMOUS = "anonymous"


@dataclass(frozen=True)
class Policy:
    """What the owner decided."""

    is_local: bool  # the server listens on loopback only
    allow_anonymous: bool  # nobody has to show a key
    anonymous_roles: frozenset[Role]  # of requests without a key, once keys were made
    key_attempts_per_min: int  # unknown keys that an address may show; 0: no limit


class Door:
    """Decides by one table, the keys and the policy. Any thread may ask."""

    def __init__(self, policy: Policy, keys: KeyRing) -> None:
        self._policy = policy
        self._keys = keys
        self._attempts = Buckets()
        self._strangers = {
            roles: Visitor(ANONYMOUS, None, roles) for roles in (ALL_ROLES, policy.anonymous_roles, frozenset[Role]())
        }

    def authorised(self, method: str, path: str, headers: Headers, client: str) -> Visitor:
        """Who makes this request, if they may.

        Args:
            method: in capitals.
            path: decoded, without the query.
            client: the peer's network address; "" when it has none.

        Raises:
            KeyMissing, KeyUnknown, KeyExpired: it is not known who asks.
            RoleMissing: the key is not for this.
            TooManyAttempts: the address has shown too many unknown keys.
        """
        rule = rule_of(method, path)
        shown = _shown_key(headers)
        if rule.is_open:
            return self._strangers[self._anonymous_roles()]
        if shown is None:
            return self._stranger(rule)
        visitor = self._holder(shown, client)
        if rule.roles.isdisjoint(visitor.roles) and Role.ADMIN not in visitor.roles:
            raise RoleMissing(
                f"The key {visitor.name} has the roles {_listed(visitor.roles)}; {rule.method} {rule.path[:200]}"
                f" wants {_listed(rule.roles | {Role.ADMIN}, ' or ')}.",
                hint="Use another key, or have one made on the device: jetforge keys add NAME --role …",
            )
        return visitor

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


def _shown_key(headers: Headers) -> bytes | None:
    """The key in `Authorization: Bearer` or `X-API-Key`; None when neither is there."""
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return key.strip() or None
        elif name == b"x-api-key":
            found = value.strip()
    return found


def _listed(roles: Iterable[Role], separator: str = ", ") -> str:
    return separator.join(sorted(role.value for role in roles))
