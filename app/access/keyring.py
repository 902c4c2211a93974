"""The live keys, in memory: a request costs one look into a dict, and a revoked key is out within a second."""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

from app.domain.access import ApiKey, Visitor, digest_of
from app.domain.errors import KeyExpired, KeyUnknown
from app.storage.keys import KeyStore
from app.storage.watch import RevisionWatch

log = logging.getLogger(__name__)

LOOK_S = 0.4  # between two looks at the revision: a revocation must show within a second
NOTE_S = 60.0  # between two notes of when keys were used: each is a write to the disk


@dataclass(frozen=True)
class _Entry:
    visitor: Visitor
    digest: bytes
    expires_s: float  # seconds since the epoch; infinite: never


class KeyRing:
    """Keys as of the last look at the database. If that fails, those of the look before stay."""

    def __init__(
        self,
        store: KeyStore,
        watched: Callable[[], RevisionWatch] | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            watched: a new watch over the store's database, so that nothing is read for nothing; None: there is none.
        """
        self._store = store
        self._watched = watched
        self._now_s = now_s
        self._entries: dict[bytes, _Entry] = {}
        self._used_s: dict[str, float] = {}
        self._revision = -1
        self.has_keys = False  # any was ever made: revoking the last one does not open the door
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="key ring", daemon=True)
        self.refresh()

    def start(self) -> None:
        """Look for changes from now on, in a thread."""
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()

    def visitor(self, key: bytes) -> Visitor:
        """Who holds the key.

        Raises:
            KeyUnknown: nobody, or it was revoked.
            KeyExpired: its time is over.
        """
        digest = digest_of(key)
        entry = self._entries.get(digest)
        # The dict compares digests of what was sent, which nobody can steer; this takes the same time for all.
        if entry is None or not hmac.compare_digest(entry.digest, digest):
            raise KeyUnknown(
                "This service does not know the API key, or it was revoked.",
                hint="Check it, or have another made on the device: jetforge keys add.",
            )
        now_s = self._now_s()
        if now_s >= entry.expires_s:
            raise KeyExpired(
                f"The API key {entry.visitor.name} has expired.",
                hint="Have another made on the device: jetforge keys add.",
            )
        assert entry.visitor.key_id is not None
        self._used_s[entry.visitor.key_id] = now_s
        return entry.visitor

    def refresh(self) -> None:
        """Read the keys again if any was made or revoked."""
        revision = self._store.revision()
        if revision == self._revision:
            return
        keys = self._store.list()
        self._entries = {bytes.fromhex(key.digest): _entry(key) for key in keys if key.revoked_at is None}
        self.has_keys = bool(keys)
        self._revision = revision

    def note_use(self) -> None:
        """Write down when keys were used since the last time."""
        latest, self._used_s = self._used_s, {}
        used = dict(latest)  # a request that came in between may still write into it
        if used:
            self._store.note_use({key: datetime.fromtimestamp(at_s, timezone.utc) for key, at_s in used.items()})

    def _watch(self) -> None:
        noted = time.monotonic()
        watch = self._new_watch()
        seen = None
        while not self._stopping.wait(LOOK_S):
            count = watch.count() if watch is not None else None
            if count is None or count != seen:
                # Only a look that went well counts as one.
                seen = count if self._guarded(self.refresh) else None
            if time.monotonic() - noted > NOTE_S:
                noted = time.monotonic()
                self._guarded(self.note_use)
        self._guarded(self.note_use)
        if watch is not None:
            watch.close()

    def _new_watch(self) -> RevisionWatch | None:
        """Made by the thread that uses it. Without one, every look reads."""
        try:
            return self._watched() if self._watched is not None else None
        except Exception as error:
            log.warning("changes of the keys cannot be watched", exc_info=error)
            return None

    def _guarded(self, look: Callable[[], None]) -> bool:
        """Whether it went well. A database that cannot be read now may be readable next time: no failure may end the
        watch."""
        try:
            look()
        except Exception as error:
            log.warning("the keys could not be looked up", exc_info=error)
            return False
        return True


def _entry(key: ApiKey) -> _Entry:
    visitor = Visitor(
        name=key.name,
        key_id=key.id,
        roles=key.roles,
        requests_per_s=key.requests_per_s,
        max_body_bytes=key.max_body_mib << 20 if key.max_body_mib is not None else None,
    )
    expires_s = key.expires_at.timestamp() if key.expires_at is not None else float("inf")
    return _Entry(visitor, bytes.fromhex(key.digest), expires_s)
