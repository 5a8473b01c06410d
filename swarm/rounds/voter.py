"""A voter's part: promise, accept, and learn what was decided.

It accepts a round that happened only when it holds every aggregate of it, so a decision never names bytes that only a
dead owner had: a majority of the voters has them all. That they decode is checked by the leader before it proposes.
"""

from shoal.swarm.identifiers import PeerId

from . import checking
from .ballots import Ballot
from .decisions import Decision, Done, digest, problem
from .messages import Accept, AcceptedBefore, Ask, Decided, Nack, Prepare, Promise, Propose
from .peer_state import PeerState


class Voter:
    def __init__(self, state: PeerState) -> None:
        self._state = state

    def on_prepare(self, sender: PeerId, message: Prepare) -> None:
        state, acceptor = self._state, self._state.slot.acceptor
        if message.ballot.proposer != sender or not state.votes or not self._may_lead(message.ballot):
            return
        if not acceptor.promise(message.ballot):
            assert acceptor.promised is not None
            state.send(sender, Nack(state.slot.round, acceptor.promised))
            return
        self._follow(message.ballot)
        accepted = None
        if acceptor.accepted is not None and acceptor.ballot is not None:
            accepted = AcceptedBefore(acceptor.ballot, acceptor.accepted.value, acceptor.accepted.roster)
        state.send(sender, Promise(state.slot.round, message.ballot, accepted, len(state.listed) + 1))

    def on_propose(self, sender: PeerId, message: Propose) -> None:
        state, slot = self._state, self._state.slot
        if message.ballot.proposer != sender or not self._may_lead(message.ballot):
            return
        if message.roster is not None:
            slot.know(message.roster)
        if state.votes and not slot.acceptor.promise(message.ballot):
            assert slot.acceptor.promised is not None
            state.send(sender, Nack(slot.round, slot.acceptor.promised))
            return
        self._follow(message.ballot)
        slot.pending = message
        if state.votes and slot.acceptor.ballot == message.ballot:
            state.send(sender, Accept(slot.round, message.ballot))  # it asks again, so it has not heard
        self.advance()

    def advance(self) -> None:
        """Accept what is proposed as soon as all of it is here."""
        state, slot, proposal = self._state, self._state.slot, self._state.slot.pending
        if proposal is None or not state.votes or slot.acceptor.ballot == proposal.ballot:
            return
        decision = self._complete(proposal)
        if decision is None:
            return
        if isinstance(decision.value, Done) and decision.roster is not None:
            missing = checking.want(state, decision, [], state.now + state.options.resend_s / 2)
            if missing or not slot.malformed.isdisjoint(r.aggregate for r in decision.value.shards):
                return
        if slot.acceptor.accept(proposal.ballot, decision):
            state.send(proposal.ballot.proposer, Accept(slot.round, proposal.ballot))

    def on_decided(self, sender: PeerId, message: Decided) -> None:
        state, slot = self._state, self._state.slot
        candidates = [slot.acceptor.accepted]
        if slot.pending is not None:
            candidates.append(self._complete(slot.pending))
        for decision in candidates:
            if decision is not None and digest(decision.value) == message.value:
                state.decided = decision
                return
        state.send(sender, Ask(slot.round, state.history.basis))

    def _complete(self, proposal: Propose) -> Decision | None:
        """The proposal with its roster; asks for the roster when it is not known. None for what makes no sense."""
        state, slot, value = self._state, self._state.slot, proposal.value
        if not isinstance(value, Done):
            return Decision(value, None)
        roster = slot.rosters.get(value.roster)
        if roster is None:
            state.send(proposal.ballot.proposer, Ask(slot.round, state.history.basis))
            return None
        if not fits(state, value, roster.fragment) or problem(value, roster, len(value.shards)):
            return None
        return Decision(value, roster)

    def _may_lead(self, ballot: Ballot) -> bool:
        """Numbers belong to the leaders in their order. Before the first round the order is everybody's own view, so
        there all may try, and none without promises.
        """
        state = self._state
        attempt = state.attempt_of(ballot)
        return attempt >= 0 and (state.founding or state.leader_at(attempt) == ballot.proposer)

    def _follow(self, ballot: Ballot) -> None:
        slot = self._state.slot
        if slot.lead is not None and slot.lead.ballot < ballot:
            slot.lead = None
        attempt = self._state.attempt_of(ballot)
        if attempt >= slot.attempt:
            slot.acknowledged = slot.acknowledged and slot.leader == ballot.proposer
            slot.attempt, slot.leader, slot.heard_at = attempt, ballot.proposer, self._state.now


def fits(state: PeerState, value: Done, fragment: int) -> bool:
    """Whether a value can be one of this run at all."""
    if fragment >= len(state.spec.fragments):
        return False
    return len(value.shards) == len(state.spec.sharding(fragment).bounds())
