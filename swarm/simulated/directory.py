"""The swarm's directory as a Kademlia table behaves, without its protocol: who holds which copy, and who hears of it.

Records lie under the keys that the real directory uses, each at the `replicas` live peers whose ids are nearest to the
key by XOR. A store or a request may get lost; a peer that dies takes its copies along; a peer that joins holds nothing
until the next announcement reaches it. Copies are dropped when their record expires.
"""

import hashlib
import random
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId
from shoal.swarm.records import NodeRecord

from .time import Timeline

Copies = dict[PeerId, NodeRecord]


@dataclass(frozen=True, slots=True)
class DirectoryConditions:
    """The first two as the real directory sets them; Kademlia's own k is 20."""

    replicas: int = 5
    asked: int = 8  # peers that a lookup asks per key and try, in parallel, the nearest first
    tries: int = 3  # with the next nearest, while nobody has answered for a key
    timeout_s: float = 2.0  # of one try
    latency_s: tuple[float, float] = (0.005, 0.15)  # one way, drawn per message
    loss: float = 0.05  # of a store, of a request, and again of its answer


def identifier(name: bytes) -> int:
    """160 bits, as hivemind's DHTID."""
    return int.from_bytes(hashlib.sha1(name, usedforsecurity=False).digest())


@dataclass(frozen=True, slots=True)
class Heard:
    """What a lookup brought: the newest copy of each record, and how many copies had to travel for it."""

    records: list[NodeRecord]
    copies: int


class SimulatedDirectory:
    """`store` and `look_up` take effect through the timeline; the random draws come from the generator given."""

    def __init__(self, timeline: Timeline, generator: random.Random, conditions: DirectoryConditions) -> None:
        self.conditions = conditions
        self.sent_copies = 0
        self._timeline = timeline
        self._random = generator
        self._places: dict[PeerId, int] = {}
        self._nearest: dict[bytes, list[tuple[int, PeerId]]] = {}  # per key all live peers, by distance
        self._held: dict[PeerId, dict[bytes, Copies]] = {}  # live peer -> key -> what it holds for it

    def join(self, peer: PeerId) -> None:
        place = self._places[peer] = identifier(peer.encode())
        self._held[peer] = {}
        for key, nearest in self._nearest.items():
            insort(nearest, (identifier(key) ^ place, peer))

    def leave(self, peer: PeerId) -> None:
        place = self._places.pop(peer)
        del self._held[peer]
        for key, nearest in self._nearest.items():
            del nearest[bisect_left(nearest, (identifier(key) ^ place, peer))]

    def store(self, record: NodeRecord, keys: Iterable[bytes]) -> None:
        """Send a copy to every replica; each arrives after its own latency, or not at all."""
        for key in keys:
            for replica in self._replicas(key, 0, self.conditions.replicas):
                self.sent_copies += 1
                if self._random.random() >= self.conditions.loss:
                    self._timeline.after(self._latency_s(), self._arrive, replica, key, record)

    def look_up(self, keys: Sequence[bytes], found: Callable[[Heard], None]) -> None:
        """Ask for all keys at once; `found` is called when all have answered or time is over."""
        _Lookup(self, self._timeline, found, set(keys)).start(keys)

    def ask(self, key: bytes, skip: int, answer: Callable[[Copies], None]) -> int:
        """One try: the `asked` nearest peers after the first `skip`. returns: how many there were to ask"""
        peers = self._replicas(key, skip, self.conditions.asked)
        for peer in peers:
            if self._random.random() >= self.conditions.loss:
                self._timeline.after(self._latency_s(), self._reply, peer, key, answer)
        return len(peers)

    def _replicas(self, key: bytes, skip: int, count: int) -> list[PeerId]:
        nearest = self._nearest.get(key)
        if nearest is None:
            distances = ((identifier(key) ^ place, peer) for peer, place in self._places.items())
            nearest = self._nearest[key] = sorted(distances)
        return [peer for _, peer in nearest[skip : skip + count]]

    def _latency_s(self) -> float:
        low, high = self.conditions.latency_s
        return low + (high - low) * self._random.random()

    def _arrive(self, replica: PeerId, key: bytes, record: NodeRecord) -> None:
        held = self._held.get(replica)
        if held is None:
            return  # it died while the copy was on its way
        copies = held.setdefault(key, {})
        known = copies.get(record.peer)
        if known is None or known.expires_at < record.expires_at:
            copies[record.peer] = record

    def _reply(self, replica: PeerId, key: bytes, answer: Callable[[Copies], None]) -> None:
        held = self._held.get(replica)
        if held is None or self._random.random() < self.conditions.loss:
            return
        now = self._timeline.now
        copies = {peer: record for peer, record in held.get(key, {}).items() if record.expires_at > now}
        held[key] = copies
        self._timeline.after(self._latency_s(), answer, dict(copies))


@dataclass(slots=True)
class _Lookup:
    """Waits per key until all peers of a try have answered or its time is over."""

    directory: SimulatedDirectory
    timeline: Timeline
    found: Callable[[Heard], None]
    waiting: set[bytes]
    newest: Copies = field(default_factory=dict)
    copies: int = 0
    answers: dict[bytes, int] = field(default_factory=dict)

    def start(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._try(key, 0)

    def _try(self, key: bytes, number: int) -> None:
        conditions = self.directory.conditions
        asked = 0

        def hear(copies: Copies) -> None:
            self._hear(key, copies)
            if self.answers[key] >= asked:
                self._close(key)

        asked = self.directory.ask(key, number * conditions.asked, hear)
        self.timeline.after(conditions.timeout_s, self._time_over, key, number)

    def _hear(self, key: bytes, copies: Copies) -> None:
        self.answers[key] = self.answers.get(key, 0) + 1
        self.copies += len(copies)
        for peer, record in copies.items():
            known = self.newest.get(peer)
            if known is None or known.expires_at < record.expires_at:
                self.newest[peer] = record

    def _time_over(self, key: bytes, number: int) -> None:
        if key not in self.waiting:
            return
        if key not in self.answers and number + 1 < self.directory.conditions.tries:
            self._try(key, number + 1)
        else:
            self._close(key)

    def _close(self, key: bytes) -> None:
        if key in self.waiting:
            self.waiting.discard(key)
            if not self.waiting:
                self.found(Heard(list(self.newest.values()), self.copies))
