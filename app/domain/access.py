"""Who may do what: roles, API keys, and the visitor that a request turns out to be."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from app.domain.errors import InvalidKeyOptions

KEY_PREFIX = "jetforge_"  # lets secret scanners and people recognise a key that leaked
KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Role(str, Enum):
    """What a key is for. `app.access.routes` says which requests each role may make."""

    READ = "read"  # looks at jobs, models, engines and the device
    INFER = "infer"  # runs engines, and looks at what they take
    BUILD = "build"  # uploads, builds, cancels, deletes, downloads engine files
    ADMIN = "admin"  # everything, the audit log included


ALL_ROLES = frozenset(Role)


@dataclass(frozen=True)
class ApiKey:
    """A key's record. The key itself is known to its holder only."""

    id: str
    name: str  # one live key has it
    digest: str
    roles: frozenset[Role]
    requests_per_s: float | None  # None: as the settings say
    max_body_mib: int | None  # None: as the settings say
    created_at: datetime
    expires_at: datetime | None  # None: never
    last_used_at: datetime | None  # None: not yet; known to the minute
    revoked_at: datetime | None  # None: it is not

    def is_live(self, now: datetime) -> bool:
        """Whether it opens anything."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True)
class Visitor:
    """Who makes a request, as far as it is known."""

    name: str  # of the key; "anonymous" without one
    key_id: str | None  # None: no key was shown
    roles: frozenset[Role]
    requests_per_s: float | None = None
    max_body_bytes: int | None = None


def new_key() -> str:
    """A key that nobody can guess: 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest_of(key: bytes) -> bytes:
    """What is stored of a key and looked up by.

    A slow password hash would protect guessable secrets. A key of 256 random bits cannot be found from its SHA-256,
    and a request must not cost milliseconds.
    """
    return hashlib.sha256(key).digest()


def checked_key_name(name: str) -> str:
    """The name, if a key can have it.

    Raises:
        InvalidKeyOptions: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise InvalidKeyOptions(
            f"{name[:80]!r} is not a name that a key can have.",
            hint="1 to 64 of A-Z, a-z, 0-9, '.', '_', '@', '-', starting with a letter or digit.",
        )
    return name
