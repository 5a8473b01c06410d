"""The swarm's directory as a Kademlia table behaves, without its protocol: who holds which copy, and who hears of it.

Records lie under `shards` keys, each at the `replicas` live peers whose ids are nearest to the key by XOR. A store or a
request may get lost; a peer that dies takes its copies along; a peer that joins holds nothing until the next
announcement reaches it. Copies are dropped when their record expires.
"""

import hashlib
import random
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .identifiers import PeerId
from .records import NodeRecord
from .simulated_time import Timeline

Copies = dict[PeerId, NodeRecord]


@dataclass(frozen=True, slots=True)
class DirectoryConditions:
    shards: int = 16  # keys over which the records of a swarm are spread
    replicas: int = 20  # Kademlia's k
    asked: int = 5  # replicas that a lookup asks per shard and try, in parallel
    tries: int = 3  # with the next replicas, while a shard has not answered
    timeout_s: float = 2.0  # of one try
    latency_s: tuple[float, float] = (0.005, 0.15)  # one way, drawn per message
    loss: float = 0.05  # of a store, of a request, and again of its answer


def identifier(text: str) -> int:
    """160 bits, as hivemind's DHTID."""
    return int.from_bytes(hashlib.sha1(text.encode(), usedforsecurity=False).digest())


class SimulatedDirectory:
    """`store` and `look_up` take effect through the timeline; the random draws come from the generator given."""

    def __init__(self, timeline: Timeline, generator: random.Random, conditions: DirectoryConditions) -> None:
        self.conditions = conditions
        self.stored_copies = 0
        self.answered_records = 0
        self._timeline = timeline
        self._random = generator
        self._keys = [identifier(f"shard {number}") for number in range(conditions.shards)]
        self._nearest: list[list[tuple[int, PeerId]]] = [[] for _ in self._keys]  # per shard, by distance
        self._copies: dict[PeerId, list[Copies]] = {}  # live peer -> its copies per shard

    def join(self, peer: PeerId) -> None:
        self._copies[peer] = [{} for _ in self._keys]
        place = identifier(peer)
        for key, nearest in zip(self._keys, self._nearest, strict=True):
            insort(nearest, (key ^ place, peer))

    def leave(self, peer: PeerId) -> None:
        del self._copies[peer]
        place = identifier(peer)
        for key, nearest in zip(self._keys, self._nearest, strict=True):
            del nearest[bisect_left(nearest, (key ^ place, peer))]

    def shard_of(self, peer: PeerId) -> int:
        return identifier(peer) % len(self._keys)

    def store(self, record: NodeRecord) -> None:
        """Send a copy to every replica; each arrives after its own latency, or not at all."""
        shard = self.shard_of(record.peer)
        draw, span, loss = self._random.random, self.conditions.latency_s, self.conditions.loss
        for _, replica in self._nearest[shard][: self.conditions.replicas]:
            if draw() >= loss:
                delay_s = span[0] + (span[1] - span[0]) * draw()
                self._timeline.after(delay_s, self._arrive, replica, shard, record)

    def look_up(self, found: Callable[[Sequence[NodeRecord]], None]) -> None:
        """Ask all shards at once; `found` is called with the newest copy of every record that was heard of."""
        _Lookup(self, self._timeline, found).start()

    def ask(self, shard: int, skip: int, answer: Callable[[Copies], None]) -> None:
        """One try: the `asked` nearest replicas after the first `skip`."""
        loss, span = self.conditions.loss, self.conditions.latency_s
        for _, replica in self._nearest[shard][skip : skip + self.conditions.asked]:
            if self._random.random() >= loss:
                self._timeline.after(self._random.uniform(*span), self._reply, replica, shard, answer)

    def _arrive(self, replica: PeerId, shard: int, record: NodeRecord) -> None:
        held = self._copies.get(replica)
        if held is None:
            return  # it died while the copy was on its way
        known = held[shard].get(record.peer)
        if known is None or known.expires_at < record.expires_at:
            held[shard][record.peer] = record
            self.stored_copies += 1

    def _reply(self, replica: PeerId, shard: int, answer: Callable[[Copies], None]) -> None:
        held = self._copies.get(replica)
        if held is None or self._random.random() < self.conditions.loss:
            return
        now = self._timeline.now
        held[shard] = {peer: record for peer, record in held[shard].items() if record.expires_at > now}
        self.answered_records += len(held[shard])
        self._timeline.after(self._random.uniform(*self.conditions.latency_s), answer, dict(held[shard]))


@dataclass(slots=True)
class _Lookup:
    """Waits per shard until all replicas of a try have answered or its time is over."""

    directory: SimulatedDirectory
    timeline: Timeline
    found: Callable[[Sequence[NodeRecord]], None]
    newest: Copies = field(default_factory=dict)
    answers: dict[int, int] = field(default_factory=dict)  # shard -> answers heard
    open_shards: set[int] = field(default_factory=set)

    def start(self) -> None:
        self.open_shards = set(range(self.directory.conditions.shards))
        for shard in sorted(self.open_shards):
            self._try(shard, 0)

    def _try(self, shard: int, number: int) -> None:
        conditions = self.directory.conditions
        self.directory.ask(shard, number * conditions.asked, lambda copies: self._hear(shard, number, copies))
        self.timeline.after(conditions.timeout_s, self._time_over, shard, number)

    def _hear(self, shard: int, number: int, copies: Copies) -> None:
        if shard not in self.open_shards:
            return
        for peer, record in copies.items():
            known = self.newest.get(peer)
            if known is None or known.expires_at < record.expires_at:
                self.newest[peer] = record
        self.answers[shard] = self.answers.get(shard, 0) + 1
        if self.answers[shard] >= self.directory.conditions.asked * (number + 1):
            self._close(shard)

    def _time_over(self, shard: int, number: int) -> None:
        if shard not in self.open_shards:
            return
        if self.answers.get(shard, 0) == 0 and number + 1 < self.directory.conditions.tries:
            self._try(shard, number + 1)
        else:
            self._close(shard)

    def _close(self, shard: int) -> None:
        self.open_shards.discard(shard)
        if not self.open_shards:
            self.found(list(self.newest.values()))
