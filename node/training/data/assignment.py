"""Which windows a peer trains on in a round: known without asking anybody, and never the same for two peers.

Only outcomes of rounds change the roster, and every replica applies the same outcomes, so all of them agree on it. An
epoch is a seeded permutation of the windows; each round hands out the next stretch of it, cut into one share for each
peer of the roster, in the order of their ids. A peer that is not on the roster yet (it has just come) has no share: it
takes part in one round without work, and is on the roster from then on.
"""

import msgspec

from shoal.swarm.identifiers import PeerId

from .shuffling import shuffled

KEPT_ROUNDS = 3  # a peer that missed rounds keeps its share for this long


class DataOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all peers of a run agree on. windows: in the whole data; share: of one peer in one round."""

    digest: str  # of the data's content
    windows: int
    share: int
    seed: int

    def size(self, peers: int) -> int:
        """Windows in each share; fewer than asked for when the data is small."""
        return min(self.share, max(1, self.windows // max(peers, 1)))


class Seen(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    peer: PeerId
    round: int  # its last contribution


class Roster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who has a share, and how far the epoch is, after the outcome of `round` (-1: before any)."""

    round: int = -1
    epoch: int = 0
    taken: int = 0  # windows of the epoch handed out so far
    seen: tuple[Seen, ...] = ()

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return tuple(entry.peer for entry in self.seen)

    def after(self, order: DataOrder, round_: int, contributors: tuple[PeerId, ...]) -> "Roster":
        """After the outcome of a round; a round may have several outcomes, one for each fragment.

        raises: ValueError for a round before the last one
        """
        if round_ < self.round:
            raise ValueError(f"the outcome of round {round_} after that of round {self.round}")
        epoch, taken = self._handed_out(order, round_)
        last = {entry.peer: entry.round for entry in self.seen} | dict.fromkeys(contributors, round_)
        kept = {peer: seen for peer, seen in last.items() if round_ - seen < KEPT_ROUNDS}
        return Roster(round_, epoch, taken, tuple(Seen(peer, kept[peer]) for peer in sorted(kept)))

    def _handed_out(self, order: DataOrder, round_: int) -> tuple[int, int]:
        """Epoch and windows taken when all rounds up to and including this one have had their stretch."""
        stretch = order.size(len(self.seen)) * min(len(self.seen), order.windows)
        if not stretch:
            return self.epoch, self.taken
        rounds = round_ - self.round
        whole = order.windows // stretch  # stretches in an epoch that begins with this roster
        left = max(0, order.windows - self.taken) // stretch
        if rounds <= left:
            return self.epoch, self.taken + rounds * stretch
        further = rounds - left - 1
        return self.epoch + 1 + further // whole, (further % whole + 1) * stretch


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stretch of the epoch's permutation: [start, start + count)."""

    order: DataOrder
    epoch: int
    start: int
    count: int

    def windows(self, begin: int, number: int) -> list[int]:
        """`number` windows from position `begin` on, round and round when the share is smaller than that."""
        places = [self.start + (begin + i) % self.count for i in range(number)]
        return shuffled(places, self.order.windows, epoch_seed(self.order.seed, self.epoch))


def epoch_seed(seed: int, epoch: int) -> int:
    return seed * 1_000_003 + epoch


def share_of(order: DataOrder, roster: Roster, peer: PeerId, round_: int) -> Share | None:
    """What a peer trains on in a round after the roster's. Pure.

    returns: None for a peer that is not on the roster, or for which the data is too small
    """
    peers = roster.peers[: order.windows]
    if peer not in peers or round_ <= roster.round:
        return None
    size = order.size(len(peers))
    epoch, end = roster._handed_out(order, round_)  # noqa: SLF001  one idea, in two functions
    start = end - size * (len(peers) - peers.index(peer))
    return Share(order, epoch, start, size)
