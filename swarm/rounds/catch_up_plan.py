"""From what peers offer to what a joiner fetches: a checkpoint, or none, and the rounds that lead on from there.

Pure. A state or a round counts when most of the peers that answered vouch for it, so a few liars lead nobody astray,
and a round that only some have applied yet is waited for. What a checkpoint or a round really holds is checked by the
state's hash after it was loaded or applied.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from shoal.swarm.identifiers import PeerId
from shoal.swarm.transfer.block_transfer_listing import BundleId

from .catch_up_messages import CatchUpOffer, CheckpointOffer, DeltaOffer

FEW_PEERS = 2  # so few may each be right alone; of more, most must agree


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    offer: CheckpointOffer
    holders: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class DeltaSource:
    offer: DeltaOffer
    holders: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class CatchUpPlan:
    """checkpoint: None: go on from where we are; deltas: to be replayed in this order; state: where that leads"""

    checkpoint: CheckpointSource | None
    deltas: tuple[DeltaSource, ...]
    state: bytes
    next_round: int  # what peers at that state take part in next

    @property
    def total_bytes(self) -> int:
        start = 0 if self.checkpoint is None else self.checkpoint.offer.total_bytes
        return start + sum(delta.offer.total_bytes for delta in self.deltas)


def vouchers_needed(answering: int) -> int:
    return 1 if answering <= FEW_PEERS else answering // 2 + 1


def plan_catch_up(
    mine: bytes, offers: Mapping[PeerId, CatchUpOffer], bad: Collection[BundleId] = (), history: Collection[bytes] = ()
) -> CatchUpPlan | None:
    """The way that ends where most peers stand, then the one that goes furthest, then the one of fewest bytes.

    mine: the hash of our own outer state; bad: bundles that did not hold what they promised
    history: states that ours came from, so that peers who lag behind us are not taken for another group
    returns: None when nothing that is offered leads on; a plan without anything to fetch when we are there already
    """
    known = _Known(offers, bad)
    plans = [known.plan(source.offer.state, source) for source in known.checkpoints]
    if mine in known.vouchers or any(offer.state in history for offer in offers.values()):
        plans.append(known.plan(mine, None))
    return max(plans, key=lambda plan: known.rank(plan, history), default=None)


class _Known:
    """Everything offered that enough peers vouch for."""

    def __init__(self, offers: Mapping[PeerId, CatchUpOffer], bad: Collection[BundleId]) -> None:
        self._offers = offers
        self.vouchers: dict[bytes, set[PeerId]] = defaultdict(set)
        checkpoints: dict[CheckpointOffer, list[PeerId]] = defaultdict(list)
        deltas: dict[DeltaOffer, list[PeerId]] = defaultdict(list)
        for peer in sorted(offers):
            offer = offers[peer]
            self.vouchers[offer.state].add(peer)
            for checkpoint in dict.fromkeys(offer.checkpoints):
                self.vouchers[checkpoint.state].add(peer)
                checkpoints[checkpoint].append(peer)
            for delta in dict.fromkeys(offer.deltas):
                self.vouchers[delta.before].add(peer)
                self.vouchers[delta.after].add(peer)
                deltas[delta].append(peer)
        self._needed = needed = vouchers_needed(len(offers))
        trusted = [
            DeltaSource(delta, tuple(holders))
            for delta, holders in deltas.items()
            if len(holders) >= needed and delta.bundle not in bad
        ]
        trusted.sort(key=lambda source: (len(source.holders), source.offer.bundle))
        self._leaving = {source.offer.before: source for source in trusted}  # of several, that of most holders
        self._arriving = {source.offer.after: source for source in trusted}
        self.checkpoints = [
            CheckpointSource(checkpoint, tuple(holders))
            for checkpoint, holders in checkpoints.items()
            if len(self.vouchers[checkpoint.state]) >= needed and checkpoint.bundle not in bad
        ]
        self._rounds = {source.offer.state: source.offer.round for source in self.checkpoints}
        self._rounds |= {after: source.offer.round for after, source in self._arriving.items()}

    def plan(self, state: bytes, checkpoint: CheckpointSource | None) -> CatchUpPlan:
        way: list[DeltaSource] = []
        round_ = self._rounds.get(state, -1)
        while (source := self._leaving.get(state)) is not None and source.offer.round > round_:
            state, round_ = source.offer.after, source.offer.round
            way.append(source)
        next_round = max((o.next_round for o in self._offers.values() if o.state == state), default=0)
        return CatchUpPlan(checkpoint, tuple(way), state, max(next_round, round_ + 1))

    def rank(self, plan: CatchUpPlan, history: Collection[bytes]) -> tuple[int, int, bool, int, bool]:
        """How many peers stand at the end of the way or anywhere before it; the round it ends with; whether most have
        the very checkpoint it begins with (the state's hash is not over all that lies in one); what it costs.
        """
        line, state = {plan.state}, plan.state
        while (source := self._arriving.get(state)) is not None and source.offer.before not in line:
            state = source.offer.before
            line.add(state)
        round_ = self._rounds.get(plan.state, -1)
        if plan.checkpoint is None:
            line |= set(history)
            round_ = max([round_, *(self._rounds[before] + 1 for before in history if before in self._rounds)])
        here = sum(offer.state in line for offer in self._offers.values())
        common = plan.checkpoint is None or len(plan.checkpoint.holders) >= self._needed
        return here, round_, common, -plan.total_bytes, plan.checkpoint is None
