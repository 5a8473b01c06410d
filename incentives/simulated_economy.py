"""An economy of peers in virtual time: who asks whom, what is paid and minted, who is caught, and who waits.

Real rules throughout: balances (`balances`), PayWords, fair queues and lanes, audits (`audit_draw`, `sequential_test`),
debts for unpaid work (`favours`), trust as a cost (`standing`). Simulated are the machines, the network
(none: everybody knows all entries at once), signatures (entries are taken as accepted) and what an audit finds, which
is drawn with the chances that the sequential test counts with.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from math import log, sin, tau

from shoal.swarm.identifiers import PeerId
from shoal.swarm.routing.chain_choice import QUEUE_FACTOR
from shoal.swarm.sessions.lanes import Claim, Lane

from .audit_draw import audit_rate
from .audit_threshold import Finding
from .bodies import TICK_TOKENS
from .sequential_test import FAR_HONEST, GROSS_HONEST, Suspicion
from .simulated_bank import PRICE, TICK, Account, Bank, name_of
from .simulated_events import EventQueue
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
from .simulated_peer import Gains, Peer, Supply, Waits
from .simulated_server import POSITIONS_S, QUANTUM_S, Work
from .standing import Standings
from .trust import AuditRecord
from .work_chunks import CHUNK_POSITIONS

DAY_S = 86_400.0
BEGAN_S = 1_800_000_000.0  # unix time
MEAN_POSITIONS = 2500
MOST_POSITIONS = 8192
TRAINING_POSITIONS_DAY = 4000  # audited, of each honest server, beside serving
CHOICES = 6  # servers that a client compares
VIEW_S = 14 * DAY_S  # how old a client's view of others may become
PATIENCE_S = 3600.0  # a client that has found no room for so long gives up
RETRY_S = 120.0
OWES_S = DAY_S  # how old a server's view of what it owes may become
STEP_MS = 1000 / POSITIONS_S


class Economy:
    def __init__(self, peers: int, days: float, seed: int, load: float = 1.0) -> None:
        """load: factor on everybody's demand"""
        self.random = random.Random(seed)
        self.days, self.load = days, load
        self.gains = {kind: Gains() for kind in Kind}
        self.bank = Bank(self.random, self.gains)
        self.records: dict[PeerId, AuditRecord] = {}
        self.convicted: set[PeerId] = set()
        self._found: dict[bytes, AuditRecord] = {}  # the two again, by key
        self._out: set[bytes] = set()
        self.waits = Waits()
        self.supply: list[Supply] = []
        self.counts = Counter[Kind]()
        self._time = EventQueue(BEGAN_S)
        self._numbers = 0  # of sessions
        self._serving: list[Peer] = []
        self._given: tuple[int, list[Peer]] = -1, []  # by the hour
        self._sessions: dict[int, tuple[Peer, Peer, Account]] = {}
        self.peers = list(self._born(peers))
        for peer in self.peers:
            self._time.at(peer.comes_s, partial(self._comes, peer))

    # Peers

    def _born(self, count: int) -> Iterator[Peer]:
        for kind, share in SHARES.items():
            for number in range(round(share * count)):
                late = kind is Kind.NEWCOMER
                comes = BEGAN_S + (
                    self.random.random() * self.days * 0.9 * DAY_S if late else self.random.random() * DAY_S
                )
                ring = number // RING if kind is Kind.SYBIL else number // 2 if kind is Kind.SELF_DEALER else -1
                yield Peer(kind, self.bank.new_key(kind), comes, ring, cheats=not HABITS[kind].honest)
                self.counts[kind] += 1

    def _comes(self, peer: Peer) -> None:
        if HABITS[peer.kind].serves and self._is_real(peer):
            self._join(peer)
            self._time.at(self.now + DAY_S, partial(self._trains, peer))
        self._time.at(self.now + self._gap_s(peer), partial(self._asks, peer))
        if HABITS[peer.kind].fakes_day:
            self._time.at(self.now + DAY_S, partial(self._fakes, peer))

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

    @property
    def now(self) -> float:
        """Unix seconds."""
        return self._time.now

    @property
    def receipts(self) -> dict[PeerId, dict[PeerId, int]]:
        return self.bank.receipts

    @property
    def day(self) -> int:
        """Days that are over."""
        return len(self.supply)

    def run(self, goes_on: Callable[[], bool] = lambda: True) -> None:
        """Day after day, to the end or as long as it shall go on; it can be pickled then, and run further."""
        while self.day < int(self.days) and goes_on():
            self._time.run_until(BEGAN_S + (self.day + 1) * DAY_S)
            self.supply.append(self.bank.close_the_day(self.day + 1, self.now))

    # Asking

    def _asks(self, peer: Peer) -> None:
        self._time.at(self.now + self._gap_s(peer), partial(self._asks, peer))
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
            self._time.at(self.now + RETRY_S * self.random.uniform(0.5, 1.5), partial(self._seeks, peer, size, since_s))
        else:
            self.gains[peer.kind].given_up += 1

    def _can_pay(self, peer: Peer, size: int) -> bool:
        return self.bank.spendable(peer.key, self.now) >= self._most(size) * TICK * PRICE

    def _lane(self, client: Peer, server: Peer, size: int, *, paid: bool) -> Lane:
        """What this server owes decides, where nothing is paid."""
        if paid:
            return Lane.PAID
        if self.now - server.owes_s > OWES_S:
            server.owes_s = self.now
            server.owes = self.bank.debts(self.now, self._found, self._out).owed(server.key)
        if server.owes.get(client.key, 0.0) < self._most(size):
            return Lane.FREE
        server.owes[client.key] -= self._most(size)
        return Lane.EARNED

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

        able = [s for s in found if name_of(s.key) not in self.convicted and has_room(s)]

        def cost_ms(server: Peer) -> float:
            return STEP_MS * (1 + QUEUE_FACTOR * len(server.server.works)) + view.cost_ms(name_of(server.key))

        return min(able, key=cost_ms, default=None)

    def _view(self, peer: Peer) -> Standings:
        if self.now - peer.view_s > VIEW_S:
            peer.view_s = self.now
            peer.view = Standings.seen_by(name_of(peer.key), self.receipts, self.records, self.convicted)
        return peer.view

    # Serving

    def _opens(self, client: Peer, server: Peer, lane: Lane, size: int, since_s: float) -> None:
        account = self.bank.open(client.key, server.key, self._most(size), self.now, paid=lane is Lane.PAID)
        self._numbers += 1
        number = self._numbers
        self._sessions[number] = client, server, account
        if server.cheats:  # made-up numbers cost no time
            self._done(Work(number, Claim(name_of(client.key), lane), size, since_s))
            return
        server.server.works[number] = Work(number, Claim(name_of(client.key), lane), size, since_s)
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
            self._time.at(self.now + QUANTUM_S, partial(self._computes, server))
        else:
            server.server.busy = False

    def _done(self, work: Work) -> None:
        client, server, account = self._sessions.pop(work.session)
        garbage = server.cheats
        mine = self.gains[client.kind]
        if garbage:
            mine.spoiled += work.size
        else:
            mine.received[work.claim.lane] += work.size
            self.gains[server.kind].computed += work.size
        self.bank.settle(account, self.now, garbage=garbage)
        chunks = work.size // CHUNK_POSITIONS
        server.served_chunks += chunks
        rate = audit_rate(server.suspicion.sound, server.suspicion.most)
        self._audited(server, sum(self.random.random() < rate for _ in range(chunks)), garbage)
        if server.kind is Kind.FARMER and server.served_chunks >= FARMED_CHUNKS:
            server.cheats = True

    def _trains(self, peer: Peer) -> None:
        """A day's verified tokens. A cheat offers none: an update is looked at by all."""
        if self.now >= peer.banned_until_s and not peer.cheats:
            self.bank.mint(peer.key, TRAINING_POSITIONS_DAY * PRICE, self.now)
        self._time.at(self.now + DAY_S, partial(self._trains, peer))

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
        self.gains[peer.kind].caught += 1
        self.bank.confiscate(peer.key, self.now)
        self.convicted.add(name_of(peer.key))
        self._out.add(peer.key)
        found = AuditRecord(peer.suspicion.sound, peer.suspicion.chunks - peer.suspicion.sound)
        self._found[peer.key] = self.records[name_of(peer.key)] = found
        peer.banned_until_s = self.now + BACK_AFTER_S
        for those in (self._serving, self._there()):
            if peer in those:
                those.remove(peer)
        self._time.at(peer.banned_until_s, partial(self._comes_again, peer))

    def _comes_again(self, peer: Peer) -> None:
        peer.key = self.bank.new_key(peer.kind)
        peer.suspicion, peer.served_chunks, peer.view_s = Suspicion(), 0, float("-inf")
        peer.cheats = not HABITS[peer.kind].honest
        self._join(peer)

    def _fakes(self, peer: Peer) -> None:
        """Sessions with its own keys that nobody computes: paid ones in a circle, and unpaid ones of the same size."""
        self._time.at(self.now + DAY_S / HABITS[peer.kind].fakes_day, partial(self._fakes, peer))
        if self.now < peer.banned_until_s:
            return
        ring = [p for p in self.peers if p.kind is peer.kind and p.ring == peer.ring]
        other = ring[(ring.index(peer) + 1) % len(ring)]
        ticks = min(32, self.bank.spendable(peer.key, self.now) // (TICK * PRICE))
        if ticks:
            paid = self.bank.open(peer.key, other.key, ticks, self.now, paid=True, name=b"f")
            self.bank.settle(paid, self.now)
        unpaid = self.bank.open(peer.key, other.key, 32, self.now, paid=False, name=b"u")
        self.bank.settle(unpaid, self.now)
