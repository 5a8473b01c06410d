"""What the jurors said, and when enough of them said the same."""

from shoal.swarm.identifiers import PeerId

from .audit import Draw, draw_of
from .audit_messages import Verdict
from .ballots import majority
from .decisions import Decision, Done, digest
from .events import LiarNamed
from .peer_state import PeerState

Charge = tuple[int, int, PeerId, bool]  # round, shard, culprit, whether it lied


class Verdicts:
    def __init__(self, state: PeerState) -> None:
        self._state = state
        self._jurors: dict[Charge, set[PeerId]] = {}

    def forget(self, before_round: int) -> None:
        self._jurors = {charge: jurors for charge, jurors in self._jurors.items() if charge[0] >= before_round}

    def on_verdict(self, sender: PeerId, message: Verdict) -> None:
        """Jurors may only name the owner or the auditor of the shard that they were drawn for."""
        state = self._state
        decision = state.history.decisions.get(message.round)
        draw = drawn(state, decision, message.shard)
        if decision is None or draw is None or sender not in draw.jurors:
            return
        assert isinstance(decision.value, Done)
        assert decision.roster is not None
        owner = decision.roster.peers[decision.value.shards[message.shard].owner]
        if message.culprit not in (owner, draw.auditor):
            return
        jurors = self._jurors.setdefault((message.round, message.shard, message.culprit, message.lied), set())
        before = len(jurors)
        jurors.add(sender)
        if before < majority(len(draw.jurors)) == len(jurors):
            if message.lied:
                state.convicted[message.culprit] = f"{message.reason} (shard {message.shard}, round {message.round})"
            else:
                state.silent.add(message.culprit)
            state.report(LiarNamed(message.round, message.shard, message.culprit, message.lied, message.reason))


def drawn(state: PeerState, decision: Decision | None, shard: int) -> Draw | None:
    """Who would audit and judge this shard, whether it was drawn or not; None when the round is not known."""
    if decision is None or not isinstance(decision.value, Done) or decision.roster is None:
        return None
    bounds = state.spec.sharding(decision.roster.fragment).bounds()
    if shard >= len(bounds) or len(decision.roster.members) < 3:
        return None
    start, stop = bounds[shard]
    return draw_of(state.spec, decision, digest(decision.value), shard, stop - start)
