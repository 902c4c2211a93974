"""API keys for tests, put straight into a service's database."""

from __future__ import annotations

import secrets
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from app import wiring
from app.domain.access import ApiKey, Role, digest_of, new_key
from app.settings import Settings


def add_key(data_dir: Path, name: str, *roles: str, **fields: Any) -> str:
    """Make a key; the result is what its holder sends.

    Args:
        fields: of ApiKey, such as expires_at.
    """
    key = new_key()
    record: dict[str, Any] = {
        "requests_per_s": None,
        "max_body_mib": None,
        "expires_at": None,
        "last_used_at": None,
        "revoked_at": None,
        "created_at": datetime.now(timezone.utc),
        **fields,
    }
    digest = digest_of(key.encode()).hex()
    named = frozenset(Role(role) for role in roles)
    settings = Settings(data_dir=data_dir)
    wiring.prepare(settings)
    with wiring.connected_keys(settings) as store:
        store.add(ApiKey(id=secrets.token_hex(4), name=name, digest=digest, roles=named, **record))
    return key


def revoke_key(data_dir: Path, name: str) -> None:
    with wiring.connected_keys(Settings(data_dir=data_dir)) as store:
        store.revoke(name, datetime.now(timezone.utc))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
