"""A run of many volunteers in one process and in virtual time: latency, loss, repeats, kills, joins, stragglers, liars.

The machines, codecs and messages are the real ones; the network is a heap of deliveries drawn from one seed.
"""

import random

from shoal.swarm.errors import Refused, ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.simulated.time import Timeline

from .decisions import digest
from .events import (
    AuditPassed,
    Effect,
    Event,
    Finish,
    LiarNamed,
    Listed,
    Lost,
    Offered,
    Ran,
    Received,
    Report,
    Run,
    Send,
    Ticked,
)
from .exchange import Outcome, OutOfStep, RoundSkipped
from .messages import BULK, AnyMessage
from .simulated_trainer import Parameters, Replicas, SimulatedTrainer, tampered
from .simulation_report import RoundsReport
from .simulation_scenario import RoundScenario


class RoundSimulation:
    def __init__(self, scenario: RoundScenario) -> None:
        self.scenario = scenario
        self.timeline = Timeline()
        self.report = RoundsReport()
        self.trainers: dict[PeerId, SimulatedTrainer] = {}  # those alive
        self.replicas = Replicas(scenario.spec)
        self._initial = Parameters.initial(sum(scenario.spec.fragments))
        self._random = random.Random(scenario.seed)
        self._listing: dict[PeerId, float] = {}  # in the directory until
        self._made = 0
        self._churned: set[int] = set()

    def run(self) -> RoundsReport:
        """Until the last round is decided and everybody alive stands at the same round, or the limit is reached."""
        founders = [self._make(index < self.scenario.liars, None) for index in range(self.scenario.peers)]
        for founder in founders:
            self._start(founder)
        while self.timeline.now < self.scenario.limit_s and not self._over():
            self.timeline.run(self.timeline.now + 1.0)
        self.report.close(self.timeline, list(self.trainers.values()), self.scenario.rounds)
        return self.report

    def join(self, liar: bool = False) -> SimulatedTrainer:
        """A newcomer, with the state of one that is far."""
        self.report.joined += 1
        trainer = self._make(liar, self._donor())
        self._start(trainer)
        return trainer

    def _make(self, liar: bool, donor: SimulatedTrainer | None) -> SimulatedTrainer:
        self._made += 1
        peer = PeerId(f"peer{self._made:05d}")
        conditions = self.scenario.conditions
        compute_s = self._random.uniform(*conditions.compute_s)
        if self._random.random() < conditions.stragglers:
            compute_s *= conditions.straggler_factor
        trainer = SimulatedTrainer(
            peer,
            self.scenario.spec,
            self.scenario.options,
            self.replicas,
            donor.round if donor else 0,
            donor.parameters if donor else self._initial,
            compute_s,
            self._made,
            self.timeline.now,
            tampered if liar else None,
        )
        self.trainers[peer] = trainer
        if liar:
            self.report.liars.add(peer)
        self._listing[peer] = float("inf")
        return trainer

    def _start(self, trainer: SimulatedTrainer) -> None:
        self._list(trainer)
        self._tick(trainer)
        self._compute(trainer)

    def kill(self, peer: PeerId) -> None:
        """As kill -9: it says nothing, and stays in the directory for a while."""
        trainer = self.trainers.pop(peer)
        trainer.alive = False
        self._listing[peer] = self.timeline.now + self.scenario.conditions.listed_for_s
        self.report.killed += 1

    def handle(self, trainer: SimulatedTrainer, event: Event) -> None:
        if not trainer.alive:
            return
        before = trainer.machine.state.history.settled
        for effect in trainer.machine.handle(event, self.timeline.now):
            self._carry_out(trainer, effect)
        after = trainer.machine.state.history.settled
        for round_ in range(before + 1, after + 1):
            self._note(trainer, round_)

    def _carry_out(self, trainer: SimulatedTrainer, effect: Effect) -> None:
        conditions = self.scenario.conditions
        match effect:
            case Send(to, message):
                self._send(trainer, to, message)
            case Run(job):
                result = trainer.run(job)
                self.timeline.after(self._random.uniform(*conditions.job_s), self.handle, trainer, Ran(result))
            case Finish(_, result):
                trainer.finished.append(effect)
                self._go_on(trainer, result)
            case Report(LiarNamed(peer=culprit, lied=True)):
                trainer.named_liars.add(culprit)
                self.report.named.add(culprit)
            case Report(AuditPassed()):
                self.report.audits += 1
            case Report():
                pass

    def _send(self, trainer: SimulatedTrainer, to: PeerId, message: AnyMessage) -> None:
        conditions, draw = self.scenario.conditions, self._random.random
        self.report.messages += 1
        if to not in self.trainers:
            if draw() < conditions.noticed:
                self.timeline.after(self._latency_s(message), self.handle, trainer, Lost(to))
            return
        if draw() < conditions.loss:
            return
        receiver, event = self.trainers[to], Received(trainer.peer, message)
        self.timeline.after(self._latency_s(message), self.handle, receiver, event)
        if draw() < conditions.repeats:
            self.timeline.after(3 * self._latency_s(message), self.handle, receiver, event)

    def _latency_s(self, message: AnyMessage) -> float:
        conditions = self.scenario.conditions
        low, high = conditions.bulk_s if isinstance(message, BULK) else conditions.latency_s
        return low + (high - low) * self._random.random()

    def _go_on(self, trainer: SimulatedTrainer, result: Outcome | ShoalError) -> None:
        match result:
            case Outcome():
                trainer.apply(result)
                self.report.stand(trainer)
                self._compute(trainer)
            case RoundSkipped():
                trainer.round += 1
                self._compute(trainer)
            case OutOfStep():
                self.report.out_of_step += 1
                delay_s = self._random.uniform(*self.scenario.conditions.catch_up_s)
                self.timeline.after(delay_s, self._catch_up, trainer)
            case Refused():
                self._listing.pop(trainer.peer, None)
                self.trainers.pop(trainer.peer, None)
                trainer.alive = False
                self.report.refused.add(trainer.peer)
            case _:
                raise result

    def _compute(self, trainer: SimulatedTrainer) -> None:
        self.timeline.after(trainer.compute_s * self._random.uniform(0.9, 1.1), self._offer, trainer)

    def _offer(self, trainer: SimulatedTrainer) -> None:
        if trainer.alive:
            self.handle(trainer, Offered(trainer.offer()))

    def _catch_up(self, trainer: SimulatedTrainer) -> None:
        """As from a checkpoint and the delta log of a peer that is further."""
        donor = self._donor()
        if trainer.alive and donor is not None:
            if donor.round >= trainer.round:
                trainer.round, trainer.parameters = donor.round, donor.parameters
            self._compute(trainer)

    def _donor(self) -> SimulatedTrainer | None:
        """One of those that are furthest."""
        if not self.trainers:
            return None
        furthest = max(trainer.round for trainer in self.trainers.values())
        return self._random.choice([t for t in self.trainers.values() if t.round == furthest])

    def _tick(self, trainer: SimulatedTrainer) -> None:
        if trainer.alive:
            self.handle(trainer, Ticked())
            beat_s = self.scenario.options.beat_s
            self.timeline.after(beat_s * self._random.uniform(0.9, 1.1), self._tick, trainer)

    def _list(self, trainer: SimulatedTrainer) -> None:
        if trainer.alive:
            now = self.timeline.now
            peers = [peer for peer, until in self._listing.items() if until > now]
            self.handle(trainer, Listed(peers))
            self.timeline.after(self.scenario.conditions.listed_every_s, self._list, trainer)

    def _note(self, trainer: SimulatedTrainer, round_: int) -> None:
        """A peer has learnt a decision; the first one to do so sets off the next wave of churn."""
        decision = trainer.machine.state.history.decisions.get(round_)
        if decision is None:
            return
        self.report.decide(trainer.peer, round_, digest(decision.value), decision, self.timeline.now)
        if round_ not in self._churned and round_ + 1 < self.scenario.rounds:
            self._churned.add(round_)
            for _ in range(round(self.scenario.churn * self.scenario.peers)):
                window_s = self.scenario.churn_window_s
                self.timeline.after(self._random.uniform(0.0, window_s), self._kill_someone)
                self.timeline.after(self._random.uniform(0.0, window_s), self._join_someone)

    def _kill_someone(self) -> None:
        if len(self.trainers) > 1:
            self.kill(self._random.choice(list(self.trainers)))

    def _join_someone(self) -> None:
        self.join()

    def _over(self) -> bool:
        last = self.scenario.rounds - 1
        if last not in self.report.decided_at:
            return False
        slow_s = self.scenario.conditions.straggler_factor * self.scenario.conditions.compute_s[1]
        settled = all(trainer.machine.state.history.settled >= last for trainer in self.trainers.values())
        return settled or self.timeline.now > self.report.decided_at[last] + slow_s + 60.0
