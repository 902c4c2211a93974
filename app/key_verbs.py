"""`jetforge keys`: API keys, made and revoked on the device itself, in the data folder of its service."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from app import wiring
from app.console import display
from app.domain.access import ApiKey, Role, checked_key_name, digest_of, new_key
from app.domain.errors import InvalidKeyOptions, KeyNotFound
from app.settings import Settings
from app.storage.keys import KeyStore

ReadSettings = Callable[[Namespace], Settings]

_DURATION = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def add_verb(subparsers: Any, settings: ReadSettings) -> None:
    """Add `keys` with its acts; each sets `func`, which takes the arguments and returns the exit code."""
    summary = "make, list and revoke API keys of the service on this device"
    acts = subparsers.add_parser("keys", help=summary, description=summary.capitalize() + ".").add_subparsers(
        metavar="ACT", required=True
    )
    add = _act(acts, "add", "make a key; it is printed once", _add, settings)
    add.add_argument("name", metavar="NAME", help="who or what will use it")
    roles = [role.value for role in Role]
    add.add_argument("--role", action="append", required=True, choices=roles, help="may be repeated")
    add.add_argument("--expires-in", type=_duration, metavar="90d", help="minutes (m), hours (h) or days (d); or never")
    add.add_argument("--requests-per-s", type=_positive(float), metavar="N", help="instead of the setting")
    add.add_argument("--max-body-mib", type=_positive(int), metavar="N", help="largest request body")
    show = _act(acts, "list", "show the keys, without the secrets", _list, settings)
    show.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    _act(
        acts, "revoke", "close a key for ever; a running service notices within a second", _revoke, settings
    ).add_argument("name", metavar="NAME")


def _act(acts: Any, name: str, summary: str, act: Any, settings: ReadSettings) -> ArgumentParser:
    parser: ArgumentParser = acts.add_parser(name, help=summary, description=summary.capitalize() + ".")
    parser.add_argument("--data-dir", type=Path, help="folder of the service's database (~/.local/share/jetforge)")
    parser.set_defaults(func=lambda args: act(settings(args), args))
    return parser


def _add(settings: Settings, args: Namespace) -> int:
    key, now = new_key(), datetime.now(timezone.utc)
    record = ApiKey(
        id=secrets.token_hex(4),
        name=checked_key_name(args.name),
        digest=digest_of(key.encode()).hex(),
        roles=frozenset(Role(role) for role in args.role),
        requests_per_s=args.requests_per_s,
        max_body_mib=args.max_body_mib,
        created_at=now,
        expires_at=_end(now, args.expires_in),
        last_used_at=None,
        revoked_at=None,
    )
    is_new = not wiring.has_database(settings)  # as before the first start of a service that listens beyond loopback
    wiring.prepare(settings)
    with wiring.connected_keys(settings) as keys:
        keys.add(record)
    if is_new:
        _say(
            f"{settings.root} held no job database: a new one was made. If the service has another folder, make the key"
            " there: --data-dir."
        )
    _say(f"The key {record.name} is shown this once. Send it as: Authorization: Bearer …, or set JETFORGE_KEY.")
    sys.stdout.write(key + "\n")
    return 0


def _list(settings: Settings, args: Namespace) -> int:
    with _stored(settings) as keys:
        found = [_described(key) for key in keys.list()]
    if args.json:
        sys.stdout.write(json.dumps({"keys": found}, indent=2) + "\n")
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(display.keys_table(found))
    return 0


def _revoke(settings: Settings, args: Namespace) -> int:
    with _stored(settings) as keys:
        key = keys.revoke(args.name, datetime.now(timezone.utc))
    _say(f"The key {key.name} is revoked.")
    return 0


@contextmanager
def _stored(settings: Settings) -> Iterator[KeyStore]:
    if not wiring.has_database(settings):
        raise KeyNotFound(f"{settings.root} holds no job database.", hint="Name the service's folder: --data-dir.")
    wiring.prepare(settings)
    with wiring.connected_keys(settings) as keys:
        yield keys


def _described(key: ApiKey) -> dict[str, Any]:
    now = datetime.now(timezone.utc)
    state = "revoked" if key.revoked_at else "live" if key.is_live(now) else "expired"
    return {
        "name": key.name,
        "id": key.id,
        "state": state,
        "roles": sorted(role.value for role in key.roles),
        "created_at": _text(key.created_at),
        "last_used_at": _text(key.last_used_at),
        "expires_at": _text(key.expires_at),
        "requests_per_s": key.requests_per_s,
        "max_body_mib": key.max_body_mib,
    }


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment is not None else None


def _end(now: datetime, life: timedelta | None) -> datetime | None:
    try:
        return now + life if life is not None else None
    except OverflowError as error:
        raise InvalidKeyOptions("The key would outlive the calendar.", hint="Leave --expires-in out.") from error


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 30m, 12h or 90d")
    return int(found.group(1)) * _UNITS[found.group(2)]


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < 1e9:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
        return value

    return number


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
