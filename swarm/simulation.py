"""The swarm at scale, in one process and in virtual time: volunteers come and are killed, clients look for chains.

What is real here: the records, the keys of the directory, `placement` for who hosts what, and `routing` for the chains.
What is simulated: the DHT (`simulated_directory`), the clocks and the network. A run is a function of its seed.
"""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from .identifiers import ModelId, PeerId
from .records import NodeRecord
from .routing.chain_choice import DEFAULT_MAX_HOPS
from .routing.coverage import Coverage, Part
from .routing.mover import Claim, Drop, Go, Mover, MoveTiming
from .routing.moves import relied_on
from .routing.placement import Budget, choose_span
from .simulated.client import Judge, Query
from .simulated.directory import DirectoryConditions, Heard, SimulatedDirectory
from .simulated.model import SimulatedModel
from .simulated.peer import SWARM, Population, SimulatedPeer, next_announcement_s, record_bytes
from .simulated.report import Report
from .simulated.time import Timeline
from .transports.dht_keys import model_key, model_keys, node_key, node_keys
from .units import Span, whole

WARM_UP_S = 10.0  # the first peers have announced themselves by then
_MEASURED = 16  # peers that a joiner pings
_KNOWN = 400  # records that a founder bases its choice on, so that founding 10,000 peers takes no hours


class Placer(Protocol):
    def __call__(self, records: Sequence[NodeRecord], model: ModelId, budget: Budget, generator: random.Random) -> Span:
        """What a joiner should host, given what the directory lists."""


def placed_by_need(records: Sequence[NodeRecord], model: ModelId, budget: Budget, generator: random.Random) -> Span:
    """As real nodes choose."""
    return choose_span(records, model, budget, generator).span


@dataclass(frozen=True, slots=True)
class Scenario:
    peers: int = 1000
    layers: tuple[int, ...] = (32, 80)  # a model each; peers choose one by its number of units
    duration_s: float = 300.0  # after the warm-up
    churn: float = 0.3  # of the first peers: so many are killed or leave, and so many join, at random times
    planned: float = 0.0  # of those that go: so many drain first: they withdraw their record and serve on for a while
    drain_s: float = 5.0
    lookups: int = 1000
    max_hops: int = DEFAULT_MAX_HOPS
    review_s: float = math.inf  # how often a peer asks itself whether to move
    moving: MoveTiming = field(default_factory=MoveTiming)
    population: Population = field(default_factory=Population)
    directory: DirectoryConditions = field(default_factory=DirectoryConditions)
    seed: int = 0

    def without_moves(self) -> "Scenario":
        return replace(self, review_s=math.inf)


class Simulation:
    """`Simulation(scenario).run()` gives the report."""

    def __init__(self, scenario: Scenario, place: Placer = placed_by_need) -> None:
        self.scenario = scenario
        self.timeline = Timeline()
        self.report = Report(peers=scenario.peers)
        self.peers: dict[PeerId, SimulatedPeer] = {}  # the dead too
        self.models = {ModelId(f"{n:064x}"): SimulatedModel(n, name=f"model-{n}") for n in scenario.layers}
        self._alive: list[SimulatedPeer] = []
        self._movers: dict[PeerId, Mover] = {}
        self._place = place
        self._random = random.Random(f"{scenario.seed}/swarm")
        generator = random.Random(f"{scenario.seed}/directory")
        self._directory = SimulatedDirectory(self.timeline, generator, scenario.directory)
        self._judge = Judge(self.report, self.peers)

    def run(self) -> Report:
        scenario, timeline = self.scenario, self.timeline
        stop = WARM_UP_S + scenario.duration_s
        self.start()
        timeline.run(stop)
        timeline.run(stop + scenario.directory.tries * scenario.directory.timeout_s + 1.0)  # the last lookups end
        return self._completed_report()

    def start(self) -> None:
        """Found the swarm and put down what is to happen; whoever does not `run` it drives the timeline."""
        scenario, timeline = self.scenario, self.timeline
        self._found_swarm()
        stop = WARM_UP_S + scenario.duration_s
        for _ in range(round(scenario.churn * scenario.peers)):
            timeline.at(self._random.uniform(WARM_UP_S, stop), self._lose_someone)
            timeline.at(self._random.uniform(WARM_UP_S, stop), self._join)
        for _ in range(scenario.lookups):
            timeline.at(self._random.uniform(WARM_UP_S, stop), self._look_up)

    def _found_swarm(self) -> None:
        """The first peers choose one after the other, each knowing what others chose before it."""
        records: list[NodeRecord] = []
        for _ in range(self.scenario.peers):
            peer = self._enter()
            known = records if len(records) <= _KNOWN else self._random.sample(records, _KNOWN)
            records.append(self._choose(peer, self._some_model(), known))
            self._begin(peer, self._random.uniform(0.0, WARM_UP_S - 1.0))

    def _begin(self, peer: SimulatedPeer, when: float) -> None:
        self.timeline.at(when, self._announce, peer)
        if self.scenario.review_s < math.inf:
            self.timeline.at(when + self._random.uniform(0.0, self.scenario.review_s), self._review, peer)

    def _enter(self) -> SimulatedPeer:
        peer = SimulatedPeer.draw(self._random, self.scenario.population)
        self.peers[peer.peer] = peer
        self._alive.append(peer)
        self._directory.join(peer.peer)
        return peer

    def _join(self) -> None:
        """Enter, look up who holds parts of a model, choose layers, load them, announce."""
        peer, model = self._enter(), self._some_model()
        self.report.joined += 1

        def chosen(heard: Heard) -> None:
            if peer.alive:
                self._choose(peer, model, heard.records)
                self._begin(peer, self.timeline.now + peer.load_s)

        self._directory.look_up(model_keys(SWARM, model), chosen)

    def _some_model(self) -> ModelId:
        """The larger the likelier."""
        models = sorted(self.models)
        return self._random.choices(models, [self.models[model].layers for model in models])[0]

    def _choose(self, peer: SimulatedPeer, model: ModelId, records: Sequence[NodeRecord]) -> NodeRecord:
        span = self._place(records, model, self._budget(peer, model), self._random)
        others = self._random.sample(self._alive, min(_MEASURED, len(self._alive)))
        rtt_ms = {other.peer: peer.rtt_ms(other) for other in others if other is not peer}
        return peer.host(model, self.models[model], span, rtt_ms)

    def _budget(self, peer: SimulatedPeer, model: ModelId) -> Budget:
        """A unit is one byte here."""
        return Budget(peer.capacity_units, (1,) * (self.models[model].layers + 2))

    def _review(self, peer: SimulatedPeer) -> None:
        """Look the swarm up and move if it is worth it; the old layers are served until the new ones are loaded."""
        if not peer.alive or peer.record is None:
            return
        model, mover = peer.model, self._mover(peer)

        def decide(heard: Heard) -> None:
            if not peer.alive or peer.record is None or peer.leaving_since < math.inf or peer.moves_to is not None:
                return
            now = self.timeline.now
            live = (r for r in heard.records if r.expires_at > now and not r.withdrawn and r.peer != peer.peer)
            known = [*live, peer.record]
            verdict = mover.look(known, self._budget(peer, model), peer.span, now)
            match verdict:
                case Claim(placement):
                    peer.claim(placement.span)
                    self._tell(peer)
                case Drop():
                    peer.claim(None)
                    self._tell(peer)
                case Go(placement):
                    self._go(peer, known, placement.span)
                case _:
                    pass

        self._directory.look_up(node_keys(SWARM), decide)
        self.timeline.after(mover.next_look_s(self.timeline.now), self._review, peer)

    def _mover(self, peer: SimulatedPeer) -> Mover:
        if peer.peer not in self._movers:
            generator = random.Random(f"{self.scenario.seed}/{peer.peer}")
            timing = replace(self.scenario.moving, look_s=self.scenario.review_s)
            self._movers[peer.peer] = Mover(peer.peer, peer.model, None, generator, timing)
        return self._movers[peer.peer]

    def _go(self, peer: SimulatedPeer, known: Sequence[NodeRecord], span: Span) -> None:
        """Ask those who hold what it leaves whether they are there; then load."""
        relied = relied_on(known, peer.model, peer.span, span, peer.peer)
        peer.relied_on = {unit: [p for p in peers if self.peers[p].alive] for unit, peers in relied.items()}
        if not all(peer.relied_on.values()):
            self._mover(peer).failed(self.timeline.now)
            peer.claim(None)
            self._tell(peer)
            return
        peer.go(span)
        self._tell(peer)
        self.timeline.after(peer.load_s, self._move, peer)

    def _move(self, peer: SimulatedPeer) -> None:
        if not peer.alive:
            return
        before = self.gaps(peer.model)
        peer.move()
        self._mover(peer).moved(self.timeline.now)
        self.report.moved += 1
        for unit in self.gaps(peer.model):
            if unit not in before and any(self.peers[other].alive for other in peer.relied_on[unit]):
                self.report.holes_left += 1  # they have not died since, they have gone
        self._tell(peer)

    def gaps(self, model: ModelId) -> list[int]:
        """The units of a model that no living peer holds, as it is and not as anybody knows it."""
        alive = [peer for peer in self._alive if peer.record is not None and peer.model == model]
        layers = self.models[model].layers
        return Coverage([Part(peer.span) for peer in alive], layers).uncovered(whole(layers))

    def kill_holders(self, model: ModelId, unit: int) -> int:
        """All that hold a unit, at once. returns: how many"""
        victims = [p for p in self._alive if p.record is not None and p.model == model and unit in p.units]
        for victim in victims:
            self._alive.remove(victim)
            self.report.killed += 1
            self._end(victim)
        return len(victims)

    def _announce(self, peer: SimulatedPeer) -> None:
        if not peer.alive or peer.leaving_since < math.inf:
            return
        self._tell(peer)
        self.timeline.after(next_announcement_s(self._random), self._announce, peer)

    def _tell(self, peer: SimulatedPeer, *, withdrawn: bool = False) -> None:
        record = peer.announce(self.timeline.now, queue=self._random.randint(0, 4), withdrawn=withdrawn)
        self._directory.store(record, [node_key(SWARM, peer.peer), model_key(SWARM, peer.model, peer.peer)])

    def _lose_someone(self) -> None:
        """kill -9, which says nothing, or a planned leaving; copies of other records are gone with the peer."""
        victim = self._alive.pop(self._random.randrange(len(self._alive)))
        if self.scenario.planned and self._random.random() < self.scenario.planned and victim.record is not None:
            self._tell(victim, withdrawn=True)
            victim.leaving_since = self.timeline.now
            self.report.drained += 1
            self.timeline.after(self.scenario.drain_s, self._end, victim)
        else:
            self.report.killed += 1
            self._end(victim)

    def _end(self, victim: SimulatedPeer) -> None:
        victim.died_at = self.timeline.now
        self._directory.leave(victim.peer)

    def _look_up(self) -> None:
        """Half of the lookups want a whole model, half a part of one, as a failing session does."""
        model = self._random.choice(sorted(self.models))
        span = whole(self.models[model].layers)
        if self._random.random() < 0.5:
            span = Span(*sorted(self._random.sample(range(span.stop + 1), 2)))
        client = self._random.choice(self._alive)
        now = self.timeline.now
        query = Query(client, model, span, self.scenario.max_hops, now, now - self.scenario.directory.latency_s[1])

        def found(heard: Heard) -> None:
            self._judge.judge(query, heard, self.timeline.now)

        self._directory.look_up(model_keys(SWARM, model), found)

    def _completed_report(self) -> Report:
        report = self.report
        sizes = [record_bytes(peer.record) for peer in self._alive if peer.record is not None]
        report.record_bytes = round(statistics.mean(sizes))
        report.alive_at_end = len(self._alive)
        report.copies_sent = self._directory.sent_copies
        report.events = self.timeline.happened
        report.simulated_s = self.timeline.now
        return report
