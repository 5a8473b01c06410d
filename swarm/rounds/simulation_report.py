"""What a simulation saw, and what it found wrong."""

from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId
from shoal.swarm.simulated.time import Timeline

from .decisions import Decision, Done
from .simulated_trainer import SimulatedTrainer


@dataclass(slots=True)
class RoundsReport:
    """faults: two decisions for one round, or two states after it. behind: not in step at the end. The rest counts."""

    faults: list[str] = field(default_factory=list)
    decisions: dict[int, bytes] = field(default_factory=dict)
    decided_at: dict[int, float] = field(default_factory=dict)
    happened: dict[int, int] = field(default_factory=dict)  # round to how many took part
    states: dict[int, bytes] = field(default_factory=dict)  # after the round
    behind: list[PeerId] = field(default_factory=list)  # alive at the end and not in step
    alive: int = 0
    killed: int = 0
    joined: int = 0
    out_of_step: int = 0
    messages: int = 0
    audits: int = 0  # that found nothing
    owners: dict[int, set[PeerId]] = field(default_factory=dict)  # by round
    events: int = 0
    simulated_s: float = 0.0
    liars: set[PeerId] = field(default_factory=set)
    named: set[PeerId] = field(default_factory=set)
    refused: set[PeerId] = field(default_factory=set)

    def decide(self, peer: PeerId, round_: int, name: bytes, decision: Decision, now: float) -> None:
        known = self.decisions.setdefault(round_, name)
        self.decided_at.setdefault(round_, now)
        if known != name:
            self.faults.append(f"{peer} takes another decision for round {round_} at {now:.1f} s")
        if isinstance(decision.value, Done) and decision.roster is not None:
            self.happened[round_] = len(decision.roster.members)
            self.owners[round_] = {decision.roster.peers[result.owner] for result in decision.value.shards}

    def stand(self, trainer: SimulatedTrainer) -> None:
        """A trainer has applied a round."""
        known = self.states.setdefault(trainer.round, trainer.parameters.state)
        if known != trainer.parameters.state:
            self.faults.append(f"{trainer.peer} has another state after round {trainer.round - 1}")

    def close(self, timeline: Timeline, alive: list[SimulatedTrainer], rounds: int) -> None:
        self.alive = len(alive)
        self.behind = sorted(t.peer for t in alive if t.machine.state.history.settled < rounds - 1)
        self.events, self.simulated_s = timeline.happened, timeline.now

    @property
    def skipped(self) -> list[int]:
        return sorted(self.decisions.keys() - self.happened.keys())
