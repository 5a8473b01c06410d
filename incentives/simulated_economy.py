"""An economy of peers in virtual time: who asks whom, what is paid and minted, who is caught, and who waits.

Real rules throughout: balances (`balances`), PayWords, fair queues and lanes, audits (`audit_draw`, `sequential_test`),
debts for unpaid work (`favours`), trust as a cost (`standing`). Simulated are the machines, the network
(none: everybody knows all entries at once), signatures (entries are taken as accepted) and what an audit finds, which
is drawn with the chances that the sequential test counts with.
"""

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from math import log, sin, tau

from shoal.swarm.identifiers import PeerId
from shoal.swarm.routing.chain_choice import QUEUE_FACTOR
from shoal.swarm.sessions.lanes import Claim, Lane

from .audit_draw import audit_rate
from .audit_threshold import Finding
from .balances import Balances
from .bodies import TICK_TOKENS, WORD_BYTES, Close, Open
from .favours import Debts
from .payword import PayWords
from .sequential_test import FAR_HONEST, GROSS_HONEST, Suspicion
from .simulated_kinds import (
    BACK_AFTER_S,
    FARMED_CHUNKS,
    HABITS,
    RING,
    SHARES,
    SPLURGE_DAY,
    SPLURGE_SESSIONS_DAY,
    Kind,
)
from .simulated_server import POSITIONS_S, QUANTUM_S, Server, Work
from .standing import Standings
from .trust import AuditRecord
from .work_chunks import CHUNK_POSITIONS

DAY_S = 86_400.0
BEGAN_S = 1_800_000_000.0  # unix time
PRICE = 8  # credits a position: a model of 8 million parameters, at one server
MEAN_POSITIONS = 2500
MOST_POSITIONS = 8192
TICK = 4 * TICK_TOKENS  # positions that a tick pays here, to save hashing
LIFETIME_S = 3600
TRAINING_POSITIONS_DAY = 4000  # audited, of each honest server, beside serving
CHOICES = 6  # servers that a client compares
VIEW_S = 14 * DAY_S  # how old a client's view of others may become
PATIENCE_S = 3600.0  # a client that has found no room for so long gives up
RETRY_S = 120.0
OWES_S = DAY_S  # how old a server's view of what it owes may become
STEP_MS = 1000 / POSITIONS_S


@dataclass(slots=True)
class Peer:
    """A person with a machine. key: the account it uses now; ring: others that it works together with"""

    kind: Kind
    key: bytes
    comes_s: float
    ring: int = -1
    server: Server = field(default_factory=Server)
    cheats: bool = False
    suspicion: Suspicion = field(default_factory=Suspicion)
    served_chunks: int = 0
    banned_until_s: float = 0.0
    view: Standings = field(default_factory=Standings)
    view_s: float = float("-inf")
    owes: dict[bytes, float] = field(default_factory=dict)  # ticks of the earned lane, by account
    owes_s: float = float("-inf")


@dataclass(slots=True)
class Gains:
    """Of one kind. Positions, but for credit."""

    received: Counter[Lane] = field(default_factory=Counter)  # good answers
    spoiled: int = 0  # garbage that it got
    computed: int = 0
    earned: int = 0  # credit, after the burn
    minted: int = 0
    confiscated: int = 0
    stolen: int = 0  # credit that was paid to it for garbage and that it kept long enough to spend
    caught: int = 0
    asked: int = 0
    given_up: int = 0


@dataclass(frozen=True, slots=True)
class Supply:
    day: int
    spendable: int
    reserved: int
    vesting: int
    minted: int
    burned: int
    decayed: int


@dataclass(slots=True)
class Waits:
    """Seconds from asking to the first quantum, by lane; and the day on which."""

    seconds: defaultdict[Lane, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))


class Economy:
    def __init__(self, peers: int, days: float, seed: int, load: float = 1.0) -> None:
        """load: factor on everybody's demand"""
        self.random = random.Random(seed)
        self.days, self.load = days, load
        self.now = BEGAN_S
        self.balances = Balances()
        self.receipts: dict[PeerId, dict[PeerId, int]] = {}
        self.records: dict[PeerId, AuditRecord] = {}
        self.convicted: set[PeerId] = set()
        self._found: dict[bytes, AuditRecord] = {}  # the two again, by key
        self._out: set[bytes] = set()
        self.gains = {kind: Gains() for kind in Kind}
        self.waits = Waits()
        self.supply: list[Supply] = []
        self.kinds: dict[bytes, Kind] = {}
        self.counts = Counter[Kind]()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._serving: list[Peer] = []
        self._given: tuple[int, list[Peer]] = -1, []  # by the hour
        self._owed: tuple[int, Debts] = -1, Debts({}, None, ())  # by the hour
        self._by_key: dict[bytes, Peer] = {}
        self._sessions: dict[int, tuple[Peer, Peer, bytes, PayWords, Lane]] = {}
        self.peers = list(self._born(peers))
        for peer in self.peers:
            self._at(peer.comes_s, partial(self._comes, peer))

    # Peers

    def _born(self, count: int) -> Iterator[Peer]:
        for kind, share in SHARES.items():
            for number in range(round(share * count)):
                late = kind is Kind.NEWCOMER
                comes = BEGAN_S + (
                    self.random.random() * self.days * 0.9 * DAY_S if late else self.random.random() * DAY_S
                )
                ring = number // RING if kind is Kind.SYBIL else number // 2 if kind is Kind.SELF_DEALER else -1
                yield Peer(kind, self._new_key(kind), comes, ring, cheats=not HABITS[kind].honest)
                self.counts[kind] += 1

    def _new_key(self, kind: Kind) -> bytes:
        key = self.random.randbytes(32)
        self.kinds[key] = kind
        return key

    def _comes(self, peer: Peer) -> None:
        self._by_key[peer.key] = peer
        if HABITS[peer.kind].serves and self._is_real(peer):
            self._join(peer)
            self._at(self.now + DAY_S, partial(self._trains, peer))
        self._at(self.now + self._gap_s(peer), partial(self._asks, peer))
        if HABITS[peer.kind].fakes_day:
            self._at(self.now + DAY_S, partial(self._fakes, peer))

    def _join(self, peer: Peer) -> None:
        peer.server.from_hour = self.random.randrange(24)
        self._serving.append(peer)

    def _there(self) -> list[Peer]:
        """Machines that take sessions now."""
        hour = int(self.now) // 3600
        if self._given[0] != hour:
            self._given = hour, [peer for peer in self._serving if peer.server.is_given(self.now)]
        return self._given[1]

    def _is_real(self, peer: Peer) -> bool:
        """Of a sybil ring only the first has a machine, the others are keys."""
        return peer.kind is not Kind.SYBIL or peer is next(
            p for p in self.peers if p.kind is peer.kind and p.ring == peer.ring
        )

    def _gap_s(self, peer: Peer) -> float:
        """To its next session: demand swings by half over the day."""
        rate = HABITS[peer.kind].sessions_day
        if peer.kind is Kind.HOARDER and self.now - BEGAN_S > SPLURGE_DAY * self.days * DAY_S:
            rate = SPLURGE_SESSIONS_DAY
        if not rate:
            return DAY_S / 4
        swing = 1 + 0.5 * sin(tau * (self.now % DAY_S) / DAY_S)
        return self.random.expovariate(self.load * rate * swing / DAY_S)

    # Time

    def _at(self, when_s: float, what: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (when_s, self._numbers, what))

    @property
    def day(self) -> int:
        """Days that are over."""
        return len(self.supply)

    def run(self, goes_on: Callable[[], bool] = lambda: True) -> None:
        """Day after day, to the end or as long as it shall go on; it can be pickled then, and run further."""
        while self.day < int(self.days) and goes_on():
            end_s = BEGAN_S + (self.day + 1) * DAY_S
            while self._events and self._events[0][0] < end_s:
                self.now, _, what = heapq.heappop(self._events)
                what()
            self.now = end_s
            self._close_the_day(self.day + 1)

    def _close_the_day(self, day: int) -> None:
        for key in list(self.balances.accounts):
            list(self.balances.advance(key, int(self.now)))
        accounts, totals = self.balances.accounts.values(), self.balances.totals
        assert self.balances.imbalance() == 0
        self.balances.changed.clear()  # a store would write these rows
        self.supply.append(
            Supply(
                day,
                sum(a.spendable for a in accounts),
                sum(a.reserved for a in accounts),
                sum(a.waiting for a in accounts),
                totals.minted,
                totals.burned,
                totals.decayed,
            )
        )

    def _digest(self) -> bytes:
        self._numbers += 1
        return sha256(self._numbers.to_bytes(8, "big")).digest()

    # Asking

    def _asks(self, peer: Peer) -> None:
        self._at(self.now + self._gap_s(peer), partial(self._asks, peer))
        if peer.kind is Kind.HOARDER and not HABITS[peer.kind].sessions_day and not self._splurges():
            return
        if self.now < peer.banned_until_s:
            return
        size = min(MOST_POSITIONS, max(TICK_TOKENS, int(self.random.lognormvariate(log(MEAN_POSITIONS) - 0.32, 0.8))))
        self.gains[peer.kind].asked += 1
        self._seeks(peer, size, self.now)

    def _splurges(self) -> bool:
        return self.now - BEGAN_S > SPLURGE_DAY * self.days * DAY_S

    def _seeks(self, peer: Peer, size: int, since_s: float) -> None:
        """Find room, or come again in a moment."""
        paid = self._can_pay(peer, size)
        server = self._chosen(peer, size, paid=paid)
        if server is not None:
            self._opens(peer, server, self._lane(peer, server, size, paid=paid), size, since_s)
        elif self.now - since_s < PATIENCE_S:
            self._at(self.now + RETRY_S * self.random.uniform(0.5, 1.5), partial(self._seeks, peer, size, since_s))
        else:
            self.gains[peer.kind].given_up += 1

    def _can_pay(self, peer: Peer, size: int) -> bool:
        list(self.balances.advance(peer.key, int(self.now)))
        return self.balances.account(peer.key).spendable >= self._most(size) * TICK * PRICE

    def _lane(self, client: Peer, server: Peer, size: int, *, paid: bool) -> Lane:
        """What this server owes decides, where nothing is paid."""
        if paid:
            return Lane.PAID
        if self.now - server.owes_s > OWES_S:
            server.owes_s = self.now
            server.owes = self._debts().owed(server.key)
        if server.owes.get(client.key, 0.0) < self._most(size):
            return Lane.FREE
        server.owes[client.key] -= self._most(size)
        return Lane.EARNED

    def _debts(self) -> Debts:
        """As they stood when somebody first asked in this hour."""
        hour = int(self.now) // 3600
        if self._owed[0] != hour:
            self._owed = hour, self.balances.favours.debts(int(self.now), self._found, self._out)
        return self._owed[1]

    @staticmethod
    def _most(size: int) -> int:
        return -(-size // TICK)

    def _chosen(self, peer: Peer, size: int, *, paid: bool) -> Peer | None:
        """As routing: the least of what a session costs in time and standing, among a few that were found."""
        there = self._there()
        found = [s for s in self.random.sample(there, min(CHOICES, len(there))) if s is not peer]
        view = self._view(peer)

        def has_room(server: Peer) -> bool:
            owed = server.owes.get(peer.key, 0.0) >= self._most(size)
            return server.server.has_room(Lane.PAID if paid else Lane.EARNED if owed else Lane.FREE, size)

        able = [s for s in found if _id(s.key) not in self.convicted and has_room(s)]

        def cost_ms(server: Peer) -> float:
            return STEP_MS * (1 + QUEUE_FACTOR * len(server.server.works)) + view.cost_ms(_id(server.key))

        return min(able, key=cost_ms, default=None)

    def _view(self, peer: Peer) -> Standings:
        if self.now - peer.view_s > VIEW_S:
            peer.view_s = self.now
            peer.view = Standings.seen_by(_id(peer.key), self.receipts, self.records, self.convicted)
        return peer.view

    # Serving

    def _opens(self, client: Peer, server: Peer, lane: Lane, size: int, since_s: float) -> None:
        words = PayWords(self.random.randbytes(WORD_BYTES), self._most(size))
        price = TICK * PRICE if lane is Lane.PAID else 0
        opened = self._digest()
        self.balances.apply(
            client.key,
            Open(server.key, b"s", words.root, price, TICK, words.length, LIFETIME_S, int(lane is Lane.PAID)),
            opened,
            int(self.now),
        )
        self._numbers += 1
        number = self._numbers
        self._sessions[number] = client, server, opened, words, lane
        if server.cheats:  # made-up numbers cost no time
            self._done(Work(number, Claim(_id(client.key), lane), size, since_s))
            return
        server.server.works[number] = Work(number, Claim(_id(client.key), lane), size, since_s)
        if not server.server.busy:
            server.server.busy = True
            self._computes(server)

    def _computes(self, server: Peer) -> None:
        before = {number for number, work in server.server.works.items() if work.began_s is None}
        done = server.server.quantum(self.now)
        for work in [*server.server.works.values(), *done]:
            if work.session in before and work.began_s is not None:
                self.waits.seconds[work.claim.lane].append((work.began_s - work.came_s, self.now))
        for work in done:
            self._done(work)
        if server.server.works:
            self._at(self.now + QUANTUM_S, partial(self._computes, server))
        else:
            server.server.busy = False

    def _done(self, work: Work) -> None:
        client, server, opened, words, lane = self._sessions.pop(work.session)
        garbage = server.cheats
        mine = self.gains[client.kind]
        if garbage:
            mine.spoiled += work.size
        else:
            mine.received[lane] += work.size
            self.gains[server.kind].computed += work.size
        self._settles(client, server, opened, words, lane, garbage=garbage)
        chunks = work.size // CHUNK_POSITIONS
        server.served_chunks += chunks
        rate = audit_rate(server.suspicion.sound, server.suspicion.most)
        self._audited(server, sum(self.random.random() < rate for _ in range(chunks)), garbage)
        if server.kind is Kind.FARMER and server.served_chunks >= FARMED_CHUNKS:
            server.cheats = True

    def _settles(
        self, client: Peer, server: Peer, opened: bytes, words: PayWords, lane: Lane, *, garbage: bool
    ) -> None:
        body = Close(opened, words.length, words.word(words.length))
        for movement in self.balances.apply(server.key, body, self._digest(), int(self.now)):
            if movement.what == "earned" and movement.amount:
                kind = self.kinds[movement.account]
                self.gains[kind].earned += movement.amount
                self.gains[kind].stolen += movement.amount if garbage else 0
                edges = self.receipts.setdefault(_id(client.key), {})
                edges[_id(server.key)] = edges.get(_id(server.key), 0) + movement.amount

    def _mints(self, peer: Peer, amount: int) -> None:
        for movement in self.balances.mint(peer.key, amount, self._digest(), int(self.now)):
            if movement.what == "minted":
                self.gains[peer.kind].minted += movement.amount

    def _trains(self, peer: Peer) -> None:
        """A day's verified tokens. A cheat offers none: an update is looked at by all."""
        if self.now >= peer.banned_until_s and not peer.cheats:
            self._mints(peer, TRAINING_POSITIONS_DAY * PRICE)
        self._at(self.now + DAY_S, partial(self._trains, peer))

    # Cheating

    def _audited(self, server: Peer, chunks: int, garbage: bool) -> None:
        for _ in range(chunks):
            if self.now < server.banned_until_s:
                return
            drawn = self.random.random()
            if garbage or drawn < GROSS_HONEST:
                finding = Finding.GROSS
            else:
                finding = Finding.FAR if drawn < GROSS_HONEST + FAR_HONEST else Finding.SOUND
            server.suspicion = server.suspicion.after(finding)
            if server.suspicion.convicted:
                self._convict(server)

    def _convict(self, peer: Peer) -> None:
        """Its account is burned; the machine comes again under a new key."""
        gains = self.gains[peer.kind]
        gains.caught += 1
        for movement in self.balances.confiscate(peer.key, self._digest(), int(self.now), vested_too=True):
            if movement.what == "confiscated":
                gains.confiscated -= movement.amount
                gains.stolen = max(0, gains.stolen + movement.amount)
        self.convicted.add(_id(peer.key))
        self._out.add(peer.key)
        found = AuditRecord(peer.suspicion.sound, peer.suspicion.chunks - peer.suspicion.sound)
        self._found[peer.key] = self.records[_id(peer.key)] = found
        peer.banned_until_s = self.now + BACK_AFTER_S
        for those in (self._serving, self._there()):
            if peer in those:
                those.remove(peer)
        self._at(peer.banned_until_s, partial(self._comes_again, peer))

    def _comes_again(self, peer: Peer) -> None:
        peer.key = self._new_key(peer.kind)
        self._by_key[peer.key] = peer
        peer.suspicion, peer.served_chunks, peer.view_s = Suspicion(), 0, float("-inf")
        peer.cheats = not HABITS[peer.kind].honest
        self._join(peer)

    def _fakes(self, peer: Peer) -> None:
        """Sessions with its own keys that nobody computes: paid ones in a circle, and unpaid ones of the same size."""
        self._at(self.now + DAY_S / HABITS[peer.kind].fakes_day, partial(self._fakes, peer))
        if self.now < peer.banned_until_s:
            return
        ring = [p for p in self.peers if p.kind is peer.kind and p.ring == peer.ring]
        other = ring[(ring.index(peer) + 1) % len(ring)]
        list(self.balances.advance(peer.key, int(self.now)))
        ticks = min(32, self.balances.account(peer.key).spendable // (TICK * PRICE))
        if ticks:
            words, opened = PayWords(self.random.randbytes(WORD_BYTES), ticks), self._digest()
            body = Open(other.key, b"f", words.root, TICK * PRICE, TICK, ticks, LIFETIME_S, 1)
            self.balances.apply(peer.key, body, opened, int(self.now))
            self._settles(peer, other, opened, words, Lane.PAID, garbage=False)
        words, opened = PayWords(self.random.randbytes(WORD_BYTES), 32), self._digest()
        body = Open(other.key, b"u", words.root, 0, TICK, 32, LIFETIME_S, 0)
        self.balances.apply(peer.key, body, opened, int(self.now))
        self._settles(peer, other, opened, words, Lane.FREE, garbage=False)


def _id(key: bytes) -> PeerId:
    return PeerId(key.hex())
