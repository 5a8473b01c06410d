"""One topic as a GossipSub mesh behaves, without its protocol: who hears what when, through which losses.

A message goes at once to the peers of one's mesh, and each hands it on the first time that it comes. At each heartbeat
a peer tells a few others, at random, which messages it has seen lately, and they fetch what they missed.
source: Vyzovitis et al., GossipSub: attack-resilient message propagation, arXiv:2007.02754
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId
from shoal.swarm.topics import TopicHandler

from .time import Timeline


@dataclass(frozen=True, slots=True)
class MeshConditions:
    """The first four as GossipSub's defaults have them."""

    degree: int = 6  # of the mesh, in the mean
    told: int = 6  # peers that hear at each heartbeat what was seen
    heartbeat_s: float = 1.0
    window_s: float = 3.0  # what was seen is told for so long
    latency_s: tuple[float, float] = (0.005, 0.15)  # one way, drawn per message
    loss: float = 0.05  # of a message on one link, of a heartbeat's word, of the fetching after it
    deaf: float = 0.0  # share of mesh links that carry nothing at all: peers that hang, or censor


@dataclass(slots=True)
class _Member:
    handler: TopicHandler
    mesh: set[PeerId] = field(default_factory=set)
    deaf_to: set[PeerId] = field(default_factory=set)
    seen: dict[int, float] = field(default_factory=dict)  # number of the message -> when it came
    told: list[int] = field(default_factory=list)  # numbers of the last `window_s`, oldest first


class SimulatedTopics:
    """copies: messages carried on links. duplicates: of these, such as the receiver had"""

    def __init__(self, timeline: Timeline, generator: random.Random, conditions: MeshConditions | None = None) -> None:
        self.conditions = conditions or MeshConditions()
        self.copies = 0
        self.duplicates = 0
        self.published = 0
        self._timeline = timeline
        self._random = generator
        self._members: dict[PeerId, _Member] = {}
        self._names: list[PeerId] = []
        self._messages: list[tuple[PeerId, bytes]] = []
        self._cut: Callable[[PeerId, PeerId], bool] = lambda _one, _other: False

    def join(self, peer: PeerId, handler: TopicHandler) -> None:
        """Graft half of the degree; others that come later graft the rest."""
        member = _Member(handler)
        for other in self._grafted(peer, self.conditions.degree // 2):
            self._link(peer, member, other)
        self._members[peer] = member
        self._names.append(peer)
        first = self._random.uniform(0.0, self.conditions.heartbeat_s)
        self._timeline.after(first, self._beat, peer)

    def leave(self, peer: PeerId) -> None:
        """Its neighbours graft others in its place."""
        member = self._members.pop(peer)
        self._names.remove(peer)
        for other in sorted(member.mesh):
            left = self._members[other]
            left.mesh.discard(peer)
            for candidate in self._grafted(other, self.conditions.degree // 2 - len(left.mesh)):
                self._link(other, left, candidate)

    def _grafted(self, peer: PeerId, number: int) -> list[PeerId]:
        """So many at random, without those whose mesh is full."""
        some = self._random.sample(self._names, min(len(self._names), 4 * max(0, number)))
        full = 2 * self.conditions.degree
        return [name for name in some if name != peer and len(self._members[name].mesh) < full][: max(0, number)]

    def cut(self, separated: Callable[[PeerId, PeerId], bool]) -> None:
        """From now on nothing passes between two peers of which this is true; heal with `lambda a, b: False`."""
        self._cut = separated

    def publish(self, peer: PeerId, data: bytes) -> None:
        number = self.published
        self.published += 1
        self._messages.append((peer, data))
        self._arrive(peer, peer, number)

    def _link(self, peer: PeerId, member: _Member, other: PeerId) -> None:
        member.mesh.add(other)
        self._members[other].mesh.add(peer)
        if self._random.random() < self.conditions.deaf:
            member.deaf_to.add(other)
            self._members[other].deaf_to.add(peer)

    def _arrive(self, sender: PeerId, receiver: PeerId, number: int) -> None:
        member = self._members.get(receiver)
        if member is None:
            return
        if number in member.seen:
            self.duplicates += 1
            return
        member.seen[number] = self._timeline.now
        member.told.append(number)
        origin, data = self._messages[number]
        for other in sorted(member.mesh):
            if other != sender and other != origin:
                self._carry(receiver, other, number, trips=1)
        member.handler(origin, data)

    def _carry(self, sender: PeerId, receiver: PeerId, number: int, trips: int) -> None:
        """trips: one for a message that is pushed; three for one that is told of, asked for and sent"""
        if self._cut(sender, receiver):
            return
        self.copies += 1
        draw, (low, high) = self._random.random, self.conditions.latency_s
        if receiver in self._members[sender].deaf_to:
            return
        delay_s = 0.0
        for _ in range(trips):
            if draw() < self.conditions.loss:
                return
            delay_s += low + (high - low) * draw()
        self._timeline.after(delay_s, self._arrive, sender, receiver, number)

    def _beat(self, peer: PeerId) -> None:
        member = self._members.get(peer)
        if member is None:
            return
        now = self._timeline.now
        member.told = [number for number in member.told if now - member.seen[number] < self.conditions.window_s]
        if member.told:
            for other in self._random.sample(self._names, min(self.conditions.told, len(self._names))):
                if other not in member.mesh:
                    for number in member.told:
                        if number not in self._members[other].seen:
                            self._carry(peer, other, number, trips=3)
        self._timeline.after(self.conditions.heartbeat_s, self._beat, peer)
