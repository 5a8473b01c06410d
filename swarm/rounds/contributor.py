"""A trainer's part in a round: say that it is ready and what it commits to, then upload each shard to its owner.

It watches the leader: when that falls silent, the next in line is asked.
"""

from shoal.swarm.identifiers import PeerId

from .commitments import Commitment
from .decisions import Roster
from .events import Status
from .exchange import Offer
from .messages import Coming, Gathering, Group, Ready, Upload, Want
from .peer_state import PeerState

Kept = tuple[Offer, Commitment]


class Contributor:
    """offer: what the trainer waits for. Payloads are kept for owners that ask again and for auditors."""

    def __init__(self, state: PeerState) -> None:
        self._state = state
        self.offer: Offer | None = None
        self._kept: dict[int, Kept] = {}
        self._working_on = -1
        self._said_coming_at = float("-inf")

    @property
    def waits(self) -> bool:
        return self.offer is not None and self.offer.round == self._state.slot.round

    def take(self, offer: Offer) -> None:
        """A new offer for the open round."""
        state = self._state
        self.offer = offer
        self._kept[offer.round] = (
            offer,
            Commitment(state.run, offer.round, offer.fragment, state.me, offer.payloads),
        )
        state.slot.heard_at = state.now
        state.slot.acknowledged = False
        self._say_ready()
        self.upload()

    def forget(self, before_round: int) -> None:
        self._kept = {r: kept for r, kept in self._kept.items() if r >= before_round}

    def begin(self) -> None:
        """The trainer has the outcome of the round before and works on the open one."""
        self._working_on = self._state.slot.round
        self._said_coming_at = float("-inf")

    def tick(self) -> None:
        state, slot = self._state, self._state.slot
        if not self.waits:
            due = state.now - self._said_coming_at >= state.options.nudge_s
            if self._working_on == slot.round and due and not state.votes:
                self._said_coming_at = state.now
                for peer in dict.fromkeys((state.leader_at(0), state.leader_at(1))):
                    state.send(peer, Coming(slot.round, state.history.basis))
            return
        silence_s = state.now - slot.heard_at
        patience_s = state.options.leader_silence_s * min(3.0, 1 + slot.attempt / 6)
        leader = slot.leader or state.leader_at(slot.attempt)
        if silence_s > patience_s or (leader in state.lost and silence_s > state.options.resend_s):
            self._turn_to(slot.attempt + 1)
        elif state.now - slot.ready_at >= state.options.resend_s and (not slot.acknowledged or self._founds_apart()):
            self._say_ready()

    def _founds_apart(self) -> bool:
        """Peers that start before they know one another each begin to lead; whom all would choose has to hear."""
        state = self._state
        return state.founding and state.slot.leader != state.leader_at(state.slot.attempt)

    def on_gathering(self, sender: PeerId, message: Gathering) -> None:
        state, slot = self._state, self._state.slot
        attempt = state.attempt_of(message.ballot)
        if message.ballot.proposer != sender or attempt < slot.attempt:
            return
        slot.attempt, slot.leader, slot.heard_at, slot.acknowledged = attempt, sender, state.now, True
        if self.waits:
            ready = max(1, message.ready) if message.stage == "gathering" else message.ready  # we are, known or not
            text = waiting_line(message.stage, ready, message.needed)
            state.report(Status(slot.round, message.stage, ready, message.needed, text))
            missed = message.stage == "reducing" and (slot.group is None or slot.group.ballot < message.ballot)
            if missed and state.now - slot.ready_at >= state.options.resend_s:
                self._say_ready()  # the leader answers with the group

    def on_group(self, group: Group) -> None:
        """The slot has a new group: upload what has not gone to its owner yet."""
        slot = self._state.slot
        slot.attempt = max(slot.attempt, self._state.attempt_of(group.ballot))
        slot.leader, slot.heard_at = group.ballot.proposer, self._state.now
        self.upload()

    def upload(self) -> None:
        state, group = self._state, self._state.slot.group
        kept = self._kept.get(state.slot.round)
        if group is None or kept is None or not self._is_committed(group.roster, kept):
            return
        mine, shards = group.roster.index[state.me], len(group.owners)
        for step in range(shards):
            shard = (step + mine * shards // len(group.roster.members)) % shards  # not all to the first owner at once
            owner = group.roster.members[group.owners[shard]].peer
            if (shard, owner) not in state.slot.sent:
                state.slot.sent.add((shard, owner))
                state.send(owner, self._upload(kept, shard))

    def on_want(self, sender: PeerId, message: Want) -> None:
        """Our own payloads, once the group is fixed, to an owner that missed them or an auditor."""
        kept = self._kept.get(message.round)
        roster = self._state.roster_of(message.round)
        if kept is None or roster is None or sender not in roster.index or not self._is_committed(roster, kept):
            return
        for shard in dict.fromkeys(message.shards):
            if shard < len(kept[0].payloads):
                self._state.send(sender, self._upload(kept, shard))

    def _turn_to(self, attempt: int) -> None:
        slot = self._state.slot
        slot.attempt, slot.leader = attempt, None
        slot.heard_at, slot.acknowledged = self._state.now, False
        self._say_ready()

    def _say_ready(self) -> None:
        """To whoever leads, to whoever should, and to the next in line, which has it when it takes over."""
        state, slot, offer = self._state, self._state.slot, self.offer
        assert offer is not None
        slot.ready_at = state.now
        ready = Ready(
            offer.round,
            offer.fragment,
            offer.state,
            state.history.basis,
            slot.attempt,
            state.nonce,
            offer.tokens,
            self._kept[offer.round][1].root,
        )
        in_line = (slot.leader, state.leader_at(slot.attempt), state.leader_at(slot.attempt + 1))
        for peer in dict.fromkeys(peer for peer in in_line if peer is not None):
            state.send(peer, ready)

    def _upload(self, kept: Kept, shard: int) -> Upload:
        offer, commitment = kept
        return Upload(offer.round, shard, self._state.me, offer.payloads[shard], commitment.path(shard))

    def _is_committed(self, roster: Roster, kept: Kept) -> bool:
        me, nonce, root = self._state.me, self._state.nonce, kept[1].root
        return any((m.peer, m.nonce, m.root) == (me, nonce, root) for m in roster.members)


def waiting_line(stage: str, ready: int, needed: int) -> str:
    match stage:
        case "gathering":
            return f"waiting for peers: {ready} of at least {needed} are ready"
        case "reducing":
            return f"reducing: {ready} of {needed} shards"
        case _:
            return f"deciding: {ready} of {needed} votes"
