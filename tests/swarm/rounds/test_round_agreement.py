"""No two peers ever take different decisions for one round, whatever the network does and whoever dies when."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds import messages
from shoal.swarm.rounds.events import Lost, Offered, Received, RoundOptions, Send, Ticked
from shoal.swarm.rounds.exchange import Outcome
from shoal.swarm.rounds.simulated_trainer import Parameters, Replicas, SimulatedTrainer
from shoal.swarm.rounds.simulation import RoundSimulation
from shoal.swarm.rounds.simulation_scenario import SPEC, RoundConditions, RoundScenario

SMALL = msgspec.structs.replace(SPEC, fragments=(2 * 4096,), shards=2, grace_s=3.0, deadline_s=25.0)
OPTIONS = RoundOptions(beat_s=0.5, leader_silence_s=3.0, owner_silence_s=4.0)
MODERATE = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass(frozen=True)
class Deaf:
    """A founder that for a while hears nothing, is not heard, or both: what it missed it missed for good."""

    index: int
    start: float
    length: float
    hears: bool
    speaks: bool


class Schedule(RoundSimulation):
    """A simulation in which the test decides who is killed, who joins and who is cut off when."""

    def __init__(
        self,
        scenario: RoundScenario,
        kills: Sequence[tuple[float, int]] = (),
        joins: Sequence[float] = (),
        deaf: Sequence[Deaf] = (),
    ) -> None:
        super().__init__(scenario)
        self._deaf = deaf
        for when, index in kills:
            self.timeline.at(when, self._kill, index)
        for when in joins:
            self.timeline.at(when, self._join)

    def _kill(self, index: int) -> None:
        names = sorted(self.trainers)
        if len(names) > 1:
            self.kill(names[index % len(names)])

    def _send(self, trainer: SimulatedTrainer, to: PeerId, message: messages.AnyMessage) -> None:
        now = self.timeline.now
        for one in self._deaf:
            name = f"peer{one.index + 1:05d}"
            cut = (trainer.peer == name and not one.speaks) or (to == name and not one.hears)
            if cut and one.start <= now < one.start + one.length:
                return
        super()._send(trainer, to, message)

    def _join(self) -> None:
        if self.report.happened:  # before the first round nobody is a newcomer
            self.join()


@st.composite
def conditions(draw: st.DrawFn) -> RoundConditions:
    """From a fair network to one whose messages come later than anybody's patience, twice, and in any order."""
    slowest = draw(st.sampled_from([0.2, 1.0, 4.0, 9.0]))
    return RoundConditions(
        latency_s=(0.01, slowest),
        bulk_s=(0.05, 1.5 * slowest),
        loss=draw(st.sampled_from([0.0, 0.05, 0.2, 0.4])),
        repeats=draw(st.sampled_from([0.0, 0.1, 0.4])),
        noticed=draw(st.sampled_from([0.0, 0.5, 1.0])),
        compute_s=(0.5, 2.0),
        listed_for_s=8.0,
    )


@MODERATE
@given(
    peers=st.integers(3, 7),
    network=conditions(),
    deadline_s=st.sampled_from([2.0, 6.0, 25.0]),
    kills=st.lists(st.tuples(st.floats(0.5, 90.0), st.integers(0, 6)), max_size=4),
    joins=st.lists(st.floats(5.0, 90.0), max_size=3),
    deaf=st.lists(
        st.builds(Deaf, st.integers(0, 6), st.floats(0.0, 60.0), st.floats(1.0, 20.0), st.booleans(), st.booleans()),
        max_size=8,
    ),
    seed=st.integers(0, 1 << 20),
)
def test_there_is_one_decision_for_each_round(
    peers: int,
    network: RoundConditions,
    deadline_s: float,
    kills: list[tuple[float, int]],
    joins: list[float],
    deaf: list[Deaf],
    seed: int,
) -> None:
    """Short deadlines make leaders propose to skip what others may have accepted already."""
    spec = msgspec.structs.replace(SMALL, deadline_s=deadline_s)
    scenario = RoundScenario(
        peers=peers, rounds=4, churn=0.0, seed=seed, spec=spec, options=OPTIONS, conditions=network, limit_s=150.0
    )
    report = Schedule(scenario, kills, joins, deaf).run()
    assert report.faults == []


@settings(MODERATE, max_examples=25)
@given(peers=st.integers(3, 7), kill=st.floats(0.5, 60.0), victim=st.integers(0, 6), seed=st.integers(0, 1 << 20))
def test_one_death_at_any_instant_costs_no_round(peers: int, kill: float, victim: int, seed: int) -> None:
    network = RoundConditions(loss=0.05, compute_s=(0.5, 2.0), stragglers=0.0)
    scenario = RoundScenario(
        peers=peers, rounds=4, churn=0.0, seed=seed, spec=SMALL, options=OPTIONS, conditions=network, limit_s=400.0
    )
    report = Schedule(scenario, [(kill, victim)], []).run()
    assert report.faults == []
    assert report.behind == []
    assert report.skipped == []
    assert set(range(4)) <= report.decisions.keys()


@pytest.mark.parametrize("seed", range(8))
def test_what_a_leader_decided_before_it_died_stays_decided_though_nobody_heard_of_it(seed: int) -> None:
    """The next leader is past the deadline and would skip the round, were it not bound by what others accepted."""

    class DiesDeciding(RoundSimulation):
        victim = PeerId("")

        def _send(self, trainer: SimulatedTrainer, to: PeerId, message: messages.AnyMessage) -> None:
            if isinstance(message, messages.Decided) and message.round == 1 and not self.victim:
                self.victim = trainer.peer
                self.timeline.after(0.0, self.kill, trainer.peer)
            if trainer.peer != self.victim:
                super()._send(trainer, to, message)

    spec = msgspec.structs.replace(SMALL, deadline_s=3.0, grace_s=1.0)
    calm = RoundConditions(loss=0.0, latency_s=(0.01, 0.05), bulk_s=(0.02, 0.1), compute_s=(0.5, 1.0), stragglers=0.0)
    scenario = RoundScenario(peers=5, rounds=3, churn=0.0, seed=seed, spec=spec, options=OPTIONS, conditions=calm)
    simulation = DiesDeciding(scenario)
    report = simulation.run()
    assert simulation.victim
    assert report.faults == []
    assert report.behind == []
    assert 1 in report.happened


def test_a_network_that_is_cut_in_two_lets_at_most_one_side_go_on() -> None:
    class Cut(RoundSimulation):
        def _send(self, trainer: SimulatedTrainer, to: PeerId, message: messages.AnyMessage) -> None:
            cut = 30.0 < self.timeline.now < 100.0
            if not cut or (trainer.peer <= "peer00002") == (to <= "peer00002"):
                super()._send(trainer, to, message)

    went_on = 0
    for seed in range(6):
        simulation = Cut(RoundScenario(peers=5, rounds=9, churn=0.0, seed=seed, spec=SMALL, options=OPTIONS))
        few, many = [], []

        def look(simulation: Cut = simulation, few: list[int] = few, many: list[int] = many) -> None:
            for trainer in simulation.trainers.values():
                (few if trainer.peer <= "peer00002" else many).append(trainer.machine.state.history.settled)

        simulation.timeline.at(30.0 + 20.0, look)
        simulation.timeline.at(99.0, look)
        report = simulation.run()
        assert report.faults == []
        assert report.behind == []
        assert max(few[2:]) == max(few[:2]), "two of five decide nothing by themselves"
        went_on += max(many[3:]) > max(many[:3])
    assert went_on >= 4, "three of five go on, unless one of them had missed the last round and has no vote"


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_the_one_error(data: bytes) -> None:
    try:
        message = messages.decode(data)
    except MalformedMessage:
        return
    assert messages.decode(messages.encode(message)) == message


def recorded() -> list[messages.AnyMessage]:
    """Every message of a few rounds with audits, deaths and newcomers."""
    seen: list[messages.AnyMessage] = []

    class Tap(Schedule):
        def _send(self, trainer: SimulatedTrainer, to: PeerId, message: messages.AnyMessage) -> None:
            seen.append(message)
            super()._send(trainer, to, message)

    options = RoundOptions(beat_s=0.5, audit_share=1.0)
    scenario = RoundScenario(peers=5, rounds=5, churn=0.0, liars=1, spec=SMALL, options=options, limit_s=300.0)
    Tap(scenario, [(20.0, 3)], [25.0]).run()
    return seen


RECORDED = recorded()


def test_every_kind_of_message_survives_the_wire() -> None:
    kinds = {type(message) for message in RECORDED}
    assert len(kinds) >= 20
    for message in RECORDED:
        assert messages.decode(messages.encode(message)) == message


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 30), flips=st.integers(0, 12))
def test_a_machine_survives_whatever_members_send(seed: int, flips: int) -> None:
    """Real messages of other rounds, from the wrong senders, in any order, with fields bent; it may only refuse."""
    generator = random.Random(seed)
    replicas = Replicas(SMALL)
    start = Parameters.initial(2 * 4096)
    trainer = SimulatedTrainer(PeerId("peer00001"), SMALL, OPTIONS, replicas, 0, start, 1.0, 1, 0.0)
    machine = trainer.machine
    senders = [PeerId(f"peer{n:05d}") for n in range(1, 7)]
    now = 0.0
    machine.handle(Offered(trainer.offer()), now)
    for message in generator.sample(RECORDED, 120):
        now += generator.random()
        data = bytearray(messages.encode(message))
        for _ in range(flips):
            data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            bent = messages.decode(bytes(data))
        except MalformedMessage:
            continue
        for effect in machine.handle(Received(generator.choice(senders), bent), now):
            assert not isinstance(effect, Outcome)
            if isinstance(effect, Send):
                messages.decode(messages.encode(effect.message))
        machine.handle(generator.choice([Ticked(), Lost(generator.choice(senders))]), now)
