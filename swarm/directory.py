"""Who is there: the seam to whatever finds the swarm's nodes, and the book that remembers what was found."""

from collections.abc import Iterable
from typing import Protocol

from .errors import MalformedMessage, Refused
from .identifiers import ModelId, PeerId
from .records import NodeRecord, RecordReader

MAX_BOOK_RECORDS = 16384


class Lookup(Protocol):
    """Who is there, for those who plan."""

    book: "RecordBook"  # what is known without asking

    async def nodes(self) -> list[NodeRecord]:
        """All live nodes of the swarm, sorted by PeerID. What is known when the network does not answer in time."""

    async def holders(self, model: ModelId) -> list[NodeRecord]:
        """The live nodes that host a part of the model, sorted by PeerID."""


class Directory(Lookup, Protocol):
    """Only valid records come out: signed by their peer, of this swarm, by members, not expired, not withdrawn."""

    async def announce(self, record: NodeRecord) -> None:
        """Make our record findable for RECORD_TTL_S; `expires_at` is set here, by the directory's clock.

        raises: Unavailable when nobody could store it; ValueError when the record breaks a limit (a bug of the caller)
        """

    async def withdraw(self) -> None:
        """Take our last record out of every listing; never raises."""


class RecordBook:
    """The newest valid record of each peer. No I/O, no clock; safe to fill from anybody, since every record is checked.

    `live` never shows a record past its time; `merge` of an older record changes nothing.
    """

    def __init__(self, reader: RecordReader, capacity: int = MAX_BOOK_RECORDS) -> None:
        self._reader = reader
        self._capacity = capacity
        self._newest: dict[PeerId, tuple[NodeRecord, bytes]] = {}

    def __len__(self) -> int:
        return len(self._newest)

    def merge(self, data: bytes, now: float) -> NodeRecord | None:
        """The record when it is valid and newer than what the book holds of its peer; else None."""
        try:
            record = self._reader.read(data, now)
        except (MalformedMessage, Refused):
            return None
        known = self._newest.get(record.peer)
        if record.expires_at <= now or (known is not None and known[0].expires_at >= record.expires_at):
            return None
        if known is None and len(self._newest) >= self._capacity:
            self.prune(now)
            if len(self._newest) >= self._capacity:
                return None
        self._newest[record.peer] = (record, data)
        return record

    def prune(self, now: float) -> None:
        """Forget what has expired."""
        self._newest = {p: entry for p, entry in self._newest.items() if entry[0].expires_at > now}

    def live(self, now: float) -> list[NodeRecord]:
        """Sorted by PeerID; without those revoked since, the expired and the withdrawn."""
        return [record for record, _ in self._live(now)]

    def holders(self, model: ModelId, now: float) -> list[NodeRecord]:
        return [r for r in self.live(now) if any(hosted.model == model for hosted in r.hosted)]

    def of(self, peer: PeerId, now: float) -> NodeRecord | None:
        """The live record of one peer."""
        known = self._newest.get(peer)
        return known[0] if known is not None and self._is_live(known[0], now) else None

    def page(self, now: float, after: str = "", max_bytes: int = 192 << 10) -> list[bytes]:
        """Live signed records in the order of their PeerIDs, those greater than `after`, as many as fit.

        For answering "give me your records" in calls of bounded size: ask again with the last PeerID until [] comes.
        """
        page: list[bytes] = []
        used = 0
        for record, data in self._live(now):
            if record.peer <= after:
                continue
            used += len(data) + 8
            if page and used > max_bytes:
                break
            page.append(data)
        return page

    def merge_all(self, many: Iterable[bytes], now: float) -> list[NodeRecord]:
        """Those that were new."""
        return [record for data in many if (record := self.merge(data, now)) is not None]

    def _live(self, now: float) -> list[tuple[NodeRecord, bytes]]:
        return [entry for _, entry in sorted(self._newest.items()) if self._is_live(entry[0], now)]

    def _is_live(self, record: NodeRecord, now: float) -> bool:
        return record.expires_at > now and not record.withdrawn and not self._reader.revocations.revokes(record.peer)
