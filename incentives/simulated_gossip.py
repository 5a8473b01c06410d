"""The spreading of the ledger at scale, in one process and in virtual time: honest sessions, and forks.

Real here: entries, signatures, chains, the gossip's machine, catching up, witnesses. Simulated: the mesh that carries
messages (`swarm/simulated/topics.py`), member calls (two trips that may get lost) and time. The book that a peer keeps
is in memory. A run is a function of its seed.

A forger spends one credit twice: two OPENs with one number, shown to two servers within a moment. A server that wants
a witnessed head gets what the forger could obtain: he shows one branch to some of his witnesses and the other to the
rest, then each to all, and sends what signatures there are. He also asks those who come next in the order of
witnesses, as servers that do not know all members may take them for his.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.simulated.time import Timeline
from shoal.swarm.simulated.topics import MeshConditions, SimulatedTopics
from shoal.swarm.topic_envelope import open_sealed, seal

from . import entry as entries
from .bodies import WORD_BYTES, Open, Witness
from .chain import Forked
from .chain import Refused as Rejected
from .entry import Entry
from .gossip_events import (
    Answered,
    Ask,
    Caught,
    Convict,
    Event,
    Forger,
    GossipOptions,
    Heard,
    Kept,
    Listed,
    Publish,
    Report,
    Ticked,
    Unanswered,
)
from .gossip_messages import Answer, Cosigned, CosignWanted, EntriesWanted, ProofWanted, TipsWanted
from .gossip_report import Fork, GossipReport
from .ledger_answers import LedgerAnswers
from .ledger_gossip import LedgerGossip
from .quotas import Allowance
from .rendezvous import WITNESSES, witnesses
from .simulated_book import SimulatedBook
from .witness_duty import SignedHeads, WitnessDuty
from .witness_pursuit import LINGER_S
from .witness_quest import AskWitness, WitnessQuest
from .witnessed import Head, WitnessedHead, cosign, head_problem

TOPIC = "simulated"
EPOCH_S = 1_800_000_000.0
WARM_UP_S = 5.0
NEXT = 2  # after a forger's own witnesses
COLLECTED_S = 0.7  # a forger's witnesses have answered by then, twice
_UNBOUNDED = Allowance(burst=1e9, per_s=1e9)


@dataclass(frozen=True, slots=True)
class GossipScenario:
    peers: int = 1000
    duration_s: float = 60.0  # in which sessions begin and forks happen
    after_s: float = 30.0  # that follow, for the news to spread
    session_every_s: float = 240.0  # an honest peer opens one, in the mean
    forgers: int = 20
    apart_s: float = 2.0  # without witnesses: the second branch is shown at most so long after the first
    witnessed: bool = False  # servers want a witnessed head
    needed: int | None = None  # signatures; None: `rendezvous.quorum`
    colluding: int = 0  # of each forger's witnesses: they sign whatever he wants
    blind: float = 0.0  # share of the members that a peer's own list lacks, each another
    call_s: tuple[float, float] = (0.01, 0.3)  # there and back
    call_loss: float = 0.02
    mesh: MeshConditions = field(default_factory=lambda: MeshConditions(deaf=0.05))
    options: GossipOptions = field(default_factory=GossipOptions)
    seed: int = 0


@dataclass(slots=True)
class SimulatedLedgerPeer:
    identity: Identity
    book: SimulatedBook
    gossip: LedgerGossip
    answers: LedgerAnswers
    members: tuple[PeerId, ...] = ()
    duty: WitnessDuty | None = None

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id


class GossipSimulation:
    """`GossipSimulation(scenario).run()` gives the report."""

    def __init__(self, scenario: GossipScenario) -> None:
        self.scenario = scenario
        self.timeline = Timeline()
        self.report = GossipReport(peers=scenario.peers)
        self._random = random.Random(f"{scenario.seed}/ledger")
        self.topics = SimulatedTopics(self.timeline, random.Random(f"{scenario.seed}/mesh"), scenario.mesh)
        self._opened: dict[bytes, bytes] = {}  # envelopes whose signature was checked, by somebody
        self.peers: dict[PeerId, SimulatedLedgerPeer] = {}
        for number in range(scenario.peers):
            self._join(Identity(hashlib.sha256(f"{scenario.seed}/{number}".encode()).digest()))
        self._names = sorted(self.peers)
        self._forgers = frozenset(self._random.sample(self._names, scenario.forgers))
        self._honest = [name for name in self._names if name not in self._forgers]
        for peer in self.peers.values():
            missing = set(self._random.sample(self._names, round(scenario.blind * len(self._names))))
            peer.members = tuple(name for name in self._names if name not in missing)

    @property
    def now(self) -> float:
        """Unix seconds."""
        return EPOCH_S + self.timeline.now

    def run(self) -> GossipReport:
        scenario, timeline = self.scenario, self.timeline
        for peer in self.peers.values():
            self.handle(peer, Listed(peer.members))
            timeline.after(self._random.uniform(0.0, scenario.options.beat_s), self._tick, peer)
        for name in self._honest:
            timeline.after(self._wait_s(), self._have_session, self.peers[name])
        for name in sorted(self._forgers):
            timeline.at(self._random.uniform(WARM_UP_S, WARM_UP_S + scenario.duration_s), self._fork, self.peers[name])
        timeline.run(WARM_UP_S + scenario.duration_s + scenario.after_s)
        self.report.close(self.topics, timeline)
        return self.report

    def handle(self, peer: SimulatedLedgerPeer, event: Event) -> None:
        for effect in peer.gossip.handle(event, self.now):
            match effect:
                case Publish(body):
                    data = seal(peer.identity, TOPIC, body)
                    self.report.published_bytes += len(data)
                    self.topics.publish(peer.peer, data)
                case Ask():
                    self._ask(peer, effect)
                case Convict(proof):
                    self.report.told += 1
                    self.handle(peer, Kept([peer.book.write(peer.identity, proof, int(self.now))]))
                case Report(Forger(author)):
                    self.report.learns(peer.peer, author, self.timeline.now)
                case Report():
                    pass

    def _join(self, identity: Identity) -> None:
        book = SimulatedBook()
        generator = random.Random(f"{self.scenario.seed}/{identity.peer_id}")
        gossip = LedgerGossip(identity.peer_id, book, self._open, self.scenario.options, generator)
        peer = SimulatedLedgerPeer(identity, book, gossip, LedgerAnswers(book, gossip.convicted, _UNBOUNDED))
        self.peers[identity.peer_id] = peer
        self.topics.join(identity.peer_id, lambda origin, data: self.handle(peer, Heard(origin, data)))

    def _open(self, origin: PeerId, data: bytes) -> bytes:
        """Each envelope is checked once, not once for each of a thousand peers."""
        if data not in self._opened:
            self._opened[data] = open_sealed(TOPIC, origin, data)[1]
        return self._opened[data]

    def _tick(self, peer: SimulatedLedgerPeer) -> None:
        self.handle(peer, Ticked())
        self.timeline.after(self.scenario.options.beat_s * self._random.uniform(0.95, 1.05), self._tick, peer)

    # Member calls

    def _call(self, answer: Callable[[], None], fail: Callable[[], None]) -> None:
        """Answer after two trips, or fail after the timeout."""
        if self._random.random() < self.scenario.call_loss:
            self.timeline.after(5.0, fail)
        else:
            self.timeline.after(self._random.uniform(*self.scenario.call_s), answer)

    def _ask(self, peer: SimulatedLedgerPeer, ask: Ask) -> None:
        self.report.asked += 1

        def answer() -> None:
            answers, question = self.peers[ask.peer].answers, ask.question
            found: Answer
            match question:
                case EntriesWanted():
                    found = answers.page(peer.peer, question, self.now)
                case TipsWanted():
                    found = answers.tips(peer.peer, question, self.now)
                case ProofWanted():
                    found = answers.proof(peer.peer, question, self.now)
            self.handle(peer, Answered(ask.peer, question, found))

        self._call(answer, lambda: self.handle(peer, Unanswered(ask.peer, ask.question)))

    # Sessions

    def _wait_s(self) -> float:
        return self._random.expovariate(1.0 / self.scenario.session_every_s)

    def _body(self, server: SimulatedLedgerPeer) -> Open:
        draw = self._random.randbytes
        return Open(server.identity.public_key, draw(16), draw(WORD_BYTES), 1000, 32, 64, 3600, 1)

    def _have_session(self, client: SimulatedLedgerPeer) -> None:
        self.timeline.after(self._wait_s(), self._have_session, client)
        if self.timeline.now > WARM_UP_S + self.scenario.duration_s:
            return
        server = self.peers[self._random.choice(self._honest)]
        if server is client:
            return
        entry = client.book.write(client.identity, self._body(server), int(self.now))
        self.handle(client, Kept([entry]))
        self.report.sessions += 1
        if not self.scenario.witnessed:
            self._show(client, server, client.book, entry, None, self._count_session)
            return
        started = self.timeline.now
        appointed = witnesses(entry.author, client.members)
        quest = WitnessQuest(entry.author, entry.seq + 1, client.book, appointed, self.scenario.needed)

        shown = False

        def found(witnessed: WitnessedHead | None) -> None:
            nonlocal shown
            if not shown and witnessed is not None:
                shown = True
                self.report.witnessed_s.append(self.timeline.now - started)
                self._show(client, server, client.book, entry, witnessed, self._count_session)

        self._pursue(client, quest, list(quest.begin()), found)

    def _count_session(self, honoured: bool) -> None:
        self.report.honoured += honoured

    def _pursue(
        self,
        client: SimulatedLedgerPeer,
        quest: WitnessQuest,
        asks: list[AskWitness],
        found: Callable[[WitnessedHead | None], None],
    ) -> None:
        """found: is told when all have answered, and a while after enough have"""
        for ask in asks:

            def answer(ask: AskWitness = ask) -> None:
                done = quest.result is not None
                try:
                    cosigned = self._duty(ask.peer).answer(client.peer, ask.question, self.now)
                except ShoalError as error:
                    quest.unanswered(ask.peer, str(error))
                    return
                more = list(quest.answered(ask.peer, cosigned))
                if quest.complete:
                    found(quest.result)
                elif quest.result is not None and not done:
                    self.timeline.after(LINGER_S, lambda: found(quest.result))
                self._pursue(client, quest, more, found)

            self._call(answer, lambda ask=ask: quest.unanswered(ask.peer, "no answer"))  # type: ignore[misc]

    def _duty(self, name: PeerId) -> WitnessDuty:
        peer = self.peers[name]
        if peer.duty is None:
            peer.duty = WitnessDuty(
                peer.identity,
                peer.book,
                SignedHeads(None),
                lambda: peer.members,
                lambda author: author in peer.gossip.convicted,
                lambda proof: self.handle(peer, Caught(proof)),
            )
        return peer.duty

    def _show(
        self,
        client: SimulatedLedgerPeer,
        server: SimulatedLedgerPeer,
        chain: SimulatedBook,
        entry: Entry,
        witnessed: WitnessedHead | None,
        told: Callable[[bool], None],
    ) -> None:
        """The client shows its OPEN with what the server lacks of its chain."""

        def judge() -> None:
            told(self._honours(server, chain.of(entry.author, 0, entry.seq), entry, witnessed))

        self.timeline.after(self._random.uniform(*self.scenario.mesh.latency_s), judge)

    def _honours(
        self, server: SimulatedLedgerPeer, before: list[Entry], entry: Entry, witnessed: WitnessedHead | None
    ) -> bool:
        if entry.author in server.gossip.convicted:
            return False
        missing = [*before[server.book.chain(entry.author).length :], entry]
        verdicts = server.book.receive_all(missing, int(self.now))
        for verdict in verdicts:
            if isinstance(verdict, Forked):
                self.handle(server, Caught(verdict.proof))
                return False
            if isinstance(verdict, Rejected) and verdict.reason != "known":
                return False
        self.handle(server, Kept([entry]))
        if not self.scenario.witnessed:
            return True
        appointed = witnesses(entry.author, server.members)
        return witnessed is not None and not head_problem(witnessed, entry, appointed, self.scenario.needed)

    # Forks

    def _fork(self, forger: SimulatedLedgerPeer) -> None:
        """Two branches of one chain, each in a book of its own."""
        victims = [self.peers[name] for name in self._random.sample(self._honest, 2)]
        forger.book.write(forger.identity, self._body(victims[0]), int(self.now))  # an honest past
        books = [forger.book, forger.book.copy()]
        pairs = list(zip(books, victims, strict=True))
        branches = [book.write(forger.identity, self._body(victim), int(self.now)) for book, victim in pairs]
        fork = self.report.fork(forger.identity.public_key, self.scenario.peers - self.scenario.forgers, self._honest)
        heads: list[WitnessedHead | None] = [None, None]
        shown_after_s, apart_s = 0.0, self._random.uniform(0.0, self.scenario.apart_s)
        if self.scenario.witnessed:
            self._divide_witnesses(fork, forger, books, branches, heads)
            shown_after_s, apart_s = COLLECTED_S, 0.0
        for number, second_s in enumerate((0.0, apart_s)):

            def show(number: int = number) -> None:
                fork.shown(number, self.timeline.now)
                book, victim = pairs[number]
                self._show(forger, victim, book, branches[number], heads[number], fork.told)

            self.timeline.after(shown_after_s + second_s, show)

    def _divide_witnesses(
        self,
        fork: Fork,
        forger: SimulatedLedgerPeer,
        books: list[SimulatedBook],
        branches: list[Entry],
        heads: list[WitnessedHead | None],
    ) -> None:
        """Each witness is shown one branch first and, a moment later, the other."""
        appointed = witnesses(branches[0].author, forger.members, count=WITNESSES + NEXT)
        colluders = appointed[: self.scenario.colluding]
        order = [self._random.sample((0, 1), 2) for _ in appointed]
        signatures: list[dict[PeerId, Witness]] = [{}, {}]

        def ask(peer: PeerId, branch: int) -> None:
            fork.shown(branch, self.timeline.now)
            entry, book = branches[branch], books[branch]
            quest = WitnessQuest(entry.author, entry.seq + 1, book, appointed)
            self._witness(forger, peer, quest.head, book, lambda signed: keep(peer, branch, quest.head, signed))

        def keep(peer: PeerId, branch: int, head: Head, signed: Witness) -> None:
            signatures[branch][peer] = signed
            heads[branch] = WitnessedHead(head, tuple(signatures[branch].values()))

        for peer, branches_in_order in zip(appointed, order, strict=True):
            for delay_s, branch in zip((0.0, COLLECTED_S / 2), branches_in_order, strict=True):
                if peer in colluders:
                    quest = WitnessQuest(branches[branch].author, branches[branch].seq + 1, books[branch], appointed)
                    keep(peer, branch, quest.head, cosign(self.peers[peer].identity, quest.head))
                else:
                    self.timeline.after(delay_s, ask, peer, branch)

    def _witness(
        self,
        forger: SimulatedLedgerPeer,
        peer: PeerId,
        head: Head,
        book: SimulatedBook,
        signed: Callable[[Witness], None],
    ) -> None:
        shown = tuple(entries.encode(entry) for entry in book.of(head.author, 0, head.count))

        def answer() -> None:
            try:
                cosigned: Cosigned = self._duty(peer).answer(
                    forger.peer, CosignWanted(head.author, head.count, shown), self.now
                )
            except ShoalError:
                return
            if cosigned.witness is not None:
                signed(cosigned.witness)

        self._call(answer, lambda: None)
