"""Team: the replicas, as the service's own process sees them."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

from app.api.connection import Connection
from app.api.front import Front
from app.api.observed import RequestCounts
from app.domain.builds import Digest, EngineRecord
from app.replicas.background import Background
from app.replicas.member import Member
from app.replicas.messages import Back, Forget, FromReplica, Load, Loaded, Stop, Take, Tally
from app.replicas.nursery import Nursery
from app.serving.service import InferenceService

log = logging.getLogger(__name__)

BUSY_S = 1.0  # so long a connection that was offered counts as busy
PATIENCE_S = 5.0  # with a replica that is to do something


class Team:
    """Gives busy connections away, takes them back, and has copies loaded and dropped. Used on the event loop."""

    def __init__(self, nursery: Nursery | None, inference: InferenceService, counts: RequestCounts) -> None:
        """
        Args:
            nursery: has replicas; None: there are to be none.
            counts: of answered requests; the replicas' are added.
        """
        self._nursery = nursery
        self._inference = inference
        self._counts = counts
        self._front: Front
        self._members: list[Member] = []
        self._busy: dict[Connection, float] = {}  # here, with the time of their last offer
        self._is_stopping = False
        self._background = Background()

    def start(self, front: Front) -> None:
        """Have the replicas; connections that come back go to this front."""
        self._front = front
        if self._nursery is not None:
            self._inference.pool.seating.give_up_copies = self._drop
            self._inference.told_to_forget.append(self._forget)
            self._nursery.start(self._joined)

    async def stop(self) -> None:
        """Let them end what is under way, and end them."""
        self._is_stopping = True
        members = [*self._members]  # one that has ended leaves while it is told
        for member in members:
            member.send(Stop())
        if members:
            await asyncio.wait([member.gone for member in members], timeout=PATIENCE_S)
        for member in [*self._members]:
            self._bury(member)
        if self._nursery is not None:
            self._nursery.stop()

    @property
    def connections(self) -> int:
        return self._counts.replica_connections

    def want(self, connection: Connection, ref: str) -> bool:
        now_s = time.monotonic()
        self._busy[connection] = now_s
        self._busy = {
            one: at_s for one, at_s in self._busy.items() if now_s - at_s < BUSY_S and not one.transport.is_closing()
        }
        return self._relief(ref) is not None

    def take(self, connection: Connection, ref: str) -> bool:
        member = self._relief(ref)
        if member is None:
            return False
        self._busy.pop(connection, None)
        self._move(member, 1)
        member.send(Take(), connection.part())
        return True

    def _relief(self, ref: str) -> Member | None:
        """The replica with the fewest connections, if it has fewer than are busy here, and the engine."""
        record = self._inference.known(ref)
        if record is None or self._inference.pool.short(record) is None:
            return None
        able = (one for one in self._members if one.in_vain.get(ref) != record.blob)
        member = min(able, key=lambda one: one.connections, default=None)
        if member is None or member.connections >= len(self._busy) - 1:
            return None
        return member if self._has_copy(member, ref, record) else None

    # --- copies -----------------------------------------------------------------------------------------------------

    def _has_copy(self, member: Member, ref: str, record: EngineRecord) -> bool:
        """Whether the replica has the engine; if not, and there is room for it, it is told to load it."""
        if member.copies.get(ref) == record.blob:
            return True
        is_asked = member.asked.get(ref) == record.blob
        if not is_asked and self._inference.pool.seating.has_room_for(self._inference.estimate_bytes(record)):
            member.asked[ref] = record.blob
            member.send(Load(ref))
        return False

    async def _drop(self, blob: Digest) -> None:
        """Have every replica give its copy up, and wait for it."""
        holders = [member for member in self._members if blob in member.copy_bytes]
        done = [member.drop(blob) for member in holders]
        if done:
            await asyncio.wait(done, timeout=PATIENCE_S)
        for member in holders:
            if blob in member.dropping:  # it would keep the memory
                self._replace(member, "a replica does not answer and is ended")

    def _forget(self, name: str) -> None:
        for member in [*self._members]:  # as above
            member.send(Forget(name))

    # --- what the replicas tell -------------------------------------------------------------------------------------

    def _got(self, member: Member, message: FromReplica, files: list[int]) -> None:
        if isinstance(message, Tally):
            self._count(member, message)
        elif isinstance(message, Back):
            self._take_back(member, message, files[0])
        elif isinstance(message, Loaded):
            self._loaded(member, message)
        else:
            self._dropped(member, message.blob)

    def _count(self, member: Member, tally: Tally) -> None:
        self._move(member, -tally.closed)
        self._inference.statistics.merge(tally.engines)
        for blob, (requests, rows, runs) in tally.used.items():
            self._inference.pool.used_elsewhere(blob, requests, rows, runs)
        self._counts.merge(tally.requests)

    def _take_back(self, member: Member, back: Back, descriptor: int) -> None:
        self._move(member, -1)
        if back.ref is not None:
            member.copies.pop(back.ref, None)  # another engine goes by that name now: it is loaded when asked for
        accepted = socket.socket(fileno=descriptor)
        self._background.start(self._adopted(accepted, back))

    async def _adopted(self, accepted: socket.socket, back: Back) -> None:
        try:
            await self._front.adopt(accepted, back.data, stays=back.stays)
        except OSError:  # its client is gone already
            accepted.close()

    def _loaded(self, member: Member, loaded: Loaded) -> None:
        asked = member.asked.pop(loaded.ref, None)
        if loaded.blob is None:
            if asked is not None:  # None: an answer before was to two questions
                member.in_vain[loaded.ref] = asked
            return
        member.in_vain.pop(loaded.ref, None)
        is_new = loaded.blob not in member.copy_bytes
        if is_new:
            member.copy_bytes[loaded.blob] = loaded.copy_bytes
        if self._inference.pool.copied(loaded.blob, loaded.copy_bytes if is_new else 0):
            member.copies[loaded.ref] = loaded.blob
        else:
            self._background.start(self._drop(loaded.blob))  # it has been unloaded meanwhile

    def _dropped(self, member: Member, blob: Digest) -> None:
        self._inference.pool.copied(blob, -member.dropped(blob))

    # --- who is in it -----------------------------------------------------------------------------------------------

    def _joined(self, pid: int, end: socket.socket) -> None:
        if self._is_stopping:
            end.close()
            return
        self._members.append(Member(pid, end, self._got, self._lost))
        self._counts.replicas = len(self._members)

    def _lost(self, member: Member) -> None:
        if self._is_stopping:
            self._bury(member)
        else:
            self._replace(member, "a replica has ended, its connections are lost")

    def _replace(self, member: Member, what: str) -> None:
        """Go on without a replica until there is another in its place; the others go on as they are."""
        assert self._nursery is not None
        self._bury(member)
        replaced_in_s = self._nursery.replace(member.pid, member.age_s)
        log.error(what, extra={"pid": member.pid, "replaced_in_s": replaced_in_s})

    def _bury(self, member: Member) -> None:
        self._members.remove(member)
        self._counts.replicas = len(self._members)
        member.close()
        self._move(member, -member.connections)
        for blob in [*member.copy_bytes]:
            self._dropped(member, blob)

    def _move(self, member: Member, more: int) -> None:
        member.connections += more
        self._counts.replica_connections += more
