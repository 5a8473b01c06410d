"""Whether the peers that are ready make a group: pure functions of what the leader has heard."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from shoal.swarm.identifiers import PeerId

from .decisions import Member, Roster
from .messages import Ready


@dataclass(frozen=True, slots=True)
class Gathered:
    """The largest part of those ready that is at one state; voters weigh first.

    members: sorted by peer; voters: how many of them vote; astray: those at another state
    """

    fragment: int
    state: bytes
    members: tuple[Member, ...]
    voters: int
    astray: tuple[PeerId, ...]

    def roster(self, round_: int) -> Roster:
        return Roster(round_, self.fragment, self.state, self.members)


def gathered(readies: Mapping[PeerId, Ready], voters: Collection[tuple[PeerId, int]] | None) -> Gathered | None:
    """voters: peer and nonce; None before the first round, when all count"""
    classes: dict[tuple[int, bytes], list[PeerId]] = {}
    for peer, ready in readies.items():
        classes.setdefault((ready.fragment, ready.state), []).append(peer)
    if not classes:
        return None

    def votes(peers: list[PeerId]) -> int:
        return len(peers) if voters is None else sum((peer, readies[peer].nonce) in voters for peer in peers)

    key = min(classes, key=lambda at: (-votes(classes[at]), -len(classes[at]), at))
    members = sorted(classes[key])
    return Gathered(
        key[0],
        key[1],
        tuple(Member(peer, readies[peer].nonce, readies[peer].tokens, readies[peer].root) for peer in members),
        votes(members),
        tuple(sorted(peer for at, peers in classes.items() if at != key for peer in peers)),
    )
