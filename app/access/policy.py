"""Settings → what the owner decided about access, checked before the service starts."""

from __future__ import annotations

from datetime import datetime, timezone

from app.access.addresses import is_loopback
from app.access.door import Door, Policy
from app.access.keyring import KeyRing
from app.access.origins import Origins
from app.access.uploads import UploadSlots
from app.domain.access import Role
from app.domain.errors import StartRefused
from app.settings import Settings
from app.storage.keys import KeyStore


def door(settings: Settings, keys: KeyRing) -> Door:
    """The door that the settings describe.

    Raises:
        StartRefused: they name a role or an origin that there cannot be.
    """
    return Door(
        of_settings(settings),
        keys,
        Origins([settings.host, *_names(settings.allowed_hosts)], _names(settings.allowed_origins)),
        UploadSlots(settings.max_uploads, settings.max_uploads_per_client),
    )


def of_settings(settings: Settings) -> Policy:
    """The policy that the settings describe.

    Raises:
        StartRefused: they name a role that does not exist.
    """
    return Policy(
        is_local=is_loopback(settings.host),
        allow_anonymous=settings.allow_anonymous,
        anonymous_roles=frozenset(_role(name) for name in _names(settings.anonymous_roles)),
        key_attempts_per_min=settings.key_attempts_per_min,
        key_requests_per_s=settings.key_requests_per_s,
        address_requests_per_s=settings.address_requests_per_s,
    )


def refuse_open_door(settings: Settings, keys: KeyStore) -> None:
    """Without a key that opens anything, only this machine may ask, unless the owner says otherwise.

    Raises:
        StartRefused: the address is not loopback, and there is no live key.
    """
    if settings.allow_anonymous or is_loopback(settings.host):
        return
    now = datetime.now(timezone.utc)
    if any(key.is_live(now) for key in keys.list()):
        return
    folder = "" if settings.data_dir == type(settings).model_fields["data_dir"].default else " --data-dir …"
    raise StartRefused(
        f"Listening on {settings.host} without API keys would let anybody on the network build and run engines.",
        hint=f"Make a key first: jetforge keys add NAME --role build{folder}. Or listen on 127.0.0.1 (and reach it"
        " through ssh -L), or set JETFORGE_ALLOW_ANONYMOUS=true.",
    )


def _names(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError as error:
        raise StartRefused(
            f"JETFORGE_ANONYMOUS_ROLES names the role {name[:40]!r}.",
            hint=f"The roles are {', '.join(role.value for role in Role)}.",
        ) from error
