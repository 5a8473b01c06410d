"""Knowing what has been decided: asking those who are ahead, telling those who are behind, and telling histories apart.

A decision names the one before it, so a peer takes the next decision only when it fits its own past. Two pasts can only
arise when a network is cut for longer than `RoundOptions.forget_s`, or before the first round; the longer one wins, and
those of the other are out of step.
"""

from shoal.swarm.identifiers import PeerId

from .decisions import Decision, Done, Roster, Skip, Value, digest, problem
from .messages import Ask, Latest, Settled
from .peer_state import PeerState
from .voter import fits

ASKED_BY_A_NEWCOMER = 8


class Learner:
    """adopted: a past that replaces ours, and up to which round all is decided; for the machine to take away."""

    def __init__(self, state: PeerState) -> None:
        self._state = state
        self._asked_at = float("-inf")
        self.adopted: tuple[int, Decision] | None = None

    def tick(self, waits: bool, misses: bool) -> None:
        """A newcomer looks for the run's past at several peers, before it takes itself for a founder. One that misses
        bytes of a round that is decided may have been left behind for good.
        """
        state = self._state
        if misses and state.now - self._asked_at >= 2 * state.options.nudge_s:
            present = [voter.peer for voter in state.history.voters if voter.peer not in (state.me, *state.lost)]
            if present:
                self.ask(state.generator.choice(present))
        if waits and state.founding and state.now - self._asked_at >= state.options.resend_s:
            self._asked_at = state.now
            known = sorted(state.listed)
            for peer in state.generator.sample(known, min(len(known), ASKED_BY_A_NEWCOMER)):
                state.send(peer, Ask(state.slot.round, state.history.basis))

    def in_step(self, sender: PeerId, round_: int, basis: bytes | None = None) -> bool:
        """Whether a message speaks of the open round and of our past; otherwise one of the two learns something.

        basis: None for messages that need none
        """
        state = self._state
        if round_ < state.slot.round:
            self.tell(sender, round_)
            return False
        if round_ > state.slot.round:
            self.ask(sender)
            return False
        if basis is None or basis == state.history.basis:
            return True
        if state.history.last is None:
            self.ask(sender)
        else:
            self._tell_latest(sender)
            if basis:
                self.ask(sender)
        return False

    def ask(self, peer: PeerId) -> None:
        """At most once in a while: many messages of a later round come at once."""
        state = self._state
        if state.now - self._asked_at >= state.options.beat_s:
            self._asked_at = state.now
            state.send(peer, Ask(state.slot.round, state.history.basis))

    def tell(self, peer: PeerId, round_: int) -> None:
        """One round behind, the decision is all it takes; more, and the news is how far the run is."""
        history = self._state.history
        decision = history.decisions.get(round_)
        if decision is not None and (round_ == history.settled or history.last is None):
            self._state.send(peer, Settled(decision.value, decision.roster))
        else:
            self._tell_latest(peer)

    def on_ask(self, sender: PeerId, message: Ask) -> bool:
        """Whether the asker is in step and wants to know about the open round."""
        return self.in_step(sender, message.round, message.basis)

    def on_settled(self, sender: PeerId, message: Settled) -> None:
        state, value = self._state, message.value
        decision = self._sound(value, message.roster)
        if decision is None or value.round < state.slot.round:
            return
        if value.round > state.slot.round:
            self.ask(sender)
        elif value.basis == state.history.basis or (state.history.last is None and isinstance(value, Done)):
            state.decided = decision
        elif state.history.last is None:
            self.ask(sender)  # it was skipped, by voters whom we do not know yet
        elif decision.roster is not None:
            self._compare(sender, value.round, decision)

    def on_latest(self, sender: PeerId, message: Latest) -> None:
        state, history = self._state, self._state.history
        decision = self._sound(message.value, message.roster)
        if decision is None or message.settled < decision.value.round:
            return
        if history.last is not None and digest(decision.value) == history.basis:
            if message.settled >= state.slot.round:
                state.decided = Decision(Skip(state.slot.round, history.basis), None)
        elif decision.value.round == state.slot.round and decision.value.basis == history.basis:
            state.decided = decision
        elif history.last is None:
            self.adopted = (message.settled, decision)
        else:
            self._compare(sender, message.settled, decision)

    def _compare(self, sender: PeerId, settled: int, theirs: Decision) -> None:
        """Of two pasts the longer one is the run's; of two equally long ones that of the larger group."""
        ours = self._state.history.last
        assert ours is not None
        if _standing(theirs) > _standing(ours):
            self.adopted = (settled, theirs)
        else:
            self._tell_latest(sender)

    def _tell_latest(self, peer: PeerId) -> None:
        history = self._state.history
        if history.last is not None and history.last.roster is not None:
            self._state.send(peer, Latest(history.settled, history.last.value, history.last.roster))

    def _sound(self, value: Value, roster: Roster | None) -> Decision | None:
        if not isinstance(value, Done):
            return Decision(value, None)
        if roster is None or not fits(self._state, value, roster.fragment) or problem(value, roster, len(value.shards)):
            return None
        return Decision(value, roster)


def _standing(decision: Decision) -> tuple[int, int, bytes]:
    members = 0 if decision.roster is None else len(decision.roster.members)
    return decision.value.round, members, digest(decision.value)
