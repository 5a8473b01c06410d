"""Receipts that somebody has tampered with, shown to the machines that judge them. None may be accepted wrongly.

Strangers change bytes and fields of what others signed: flipped bits, cuts, repeats, insertions, fields exchanged
between receipts, keys put in another's place. A lying server signs what he likes: more ticks, other words, other OPENs.
"""

import random
from dataclasses import dataclass, replace

from msgspec.structs import replace as changed

from shoal.incentives import entry as entries
from shoal.incentives.account import Reservation
from shoal.incentives.balances import settles
from shoal.incentives.bodies import WORD_BYTES, Ack, Close, Open
from shoal.incentives.chain import Accepted, Chain, Forked, judge
from shoal.incentives.entry import Entry
from shoal.incentives.payword import PayWords
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identity import Identity

NOW = 1_790_000_000
CAME = 6  # ticks that the client paid
MOST = 20


@dataclass(frozen=True)
class Receipt:
    entry: Entry
    before: Chain  # of its author: it would be accepted next

    @property
    def raw(self) -> bytes:
        return entries.encode(self.entry)


@dataclass
class Outcome:
    shown: int = 0
    malformed: int = 0
    refused: int = 0
    known_values: int = 0  # the mutation changed nothing but what a hash does not cover, or nothing at all
    accepted_wrongly: int = 0
    convicted_wrongly: int = 0
    paid_wrongly: int = 0


class Scene:
    """Sessions between a client and a server, as receipts with the state in which each would be accepted."""

    def __init__(self, draw: random.Random, sessions: int = 20) -> None:
        self.client, self.server, self.stranger = (Identity(draw.randbytes(32)) for _ in range(3))
        self.receipts: list[Receipt] = []
        self.opens: list[tuple[Entry, PayWords]] = []
        chains = {who.public_key: Chain(who.public_key) for who in (self.client, self.server)}

        def write(who: Identity, body: Open | Close | Ack) -> Entry:
            chain = chains[who.public_key]
            entry = entries.write(who, chain.length, chain.head, NOW, body)
            verdict = judge(entry, chain, None, None, NOW)
            assert isinstance(verdict, Accepted)
            self.receipts.append(Receipt(entry, chain))
            chains[who.public_key] = verdict.chain
            return entry

        for _ in range(sessions):
            words = PayWords(draw.randbytes(WORD_BYTES), MOST)
            body = Open(self.server.public_key, draw.randbytes(14), words.root, 100, 32, MOST, 3600, 1)
            opened = write(self.client, body)
            self.opens.append((opened, words))
            closed = write(self.server, Close(entries.hash_of(opened), CAME, words.word(CAME)))
            write(self.client, Ack(entries.hash_of(closed), 0))
        self.genuine = {receipt.raw for receipt in self.receipts}

    def tamper(self, draw: random.Random, outcome: Outcome) -> None:
        """One receipt, changed by a stranger, shown in both states: where it would follow, and where it is held."""
        receipt = draw.choice(self.receipts)
        raw = self._mutated(receipt, draw)
        outcome.shown += 1
        try:
            entry = entries.decode(raw)
        except MalformedMessage:
            outcome.malformed += 1
            return
        if raw in self.genuine:  # unchanged, or put together from others until it was one of them
            outcome.known_values += 1
            return
        fresh = judge(entry, replace(receipt.before, author=entry.author), None, None, NOW)
        after = replace(receipt.before, length=receipt.before.length + 1, head=entries.hash_of(receipt.entry))
        held = judge(entry, replace(after, author=entry.author), receipt.entry, None, NOW)
        outcome.accepted_wrongly += isinstance(fresh, Accepted) or isinstance(held, Accepted)
        outcome.convicted_wrongly += isinstance(fresh, Forked) or isinstance(held, Forked)
        outcome.refused += 1

    def _mutated(self, receipt: Receipt, draw: random.Random) -> bytes:
        raw = bytearray(receipt.raw)
        at = draw.randrange(len(raw))
        other = draw.choice(self.receipts)
        match draw.randrange(8):
            case 0:
                raw[at] ^= 1 << draw.randrange(8)
            case 1:
                raw[at] = draw.randrange(256)
            case 2:
                del raw[at : at + draw.randrange(1, 9)]
            case 3:
                raw[at:at] = draw.randbytes(draw.randrange(1, 9))
            case 4:
                piece = other.raw[at : at + draw.randrange(1, 70)]
                raw[at : at + len(piece)] = piece
            case 5:
                fields = ("author", "seq", "prev", "time", "body", "signature")
                taken = {name: getattr(other.entry, name) for name in draw.sample(fields, draw.randrange(1, 4))}
                return entries.encode(changed(receipt.entry, **taken))
            case 6:
                return entries.encode(changed(receipt.entry, author=self.stranger.public_key))
            case _:
                low = int.from_bytes(receipt.entry.signature[32:], "little") + 2**252 + _L_REST
                tail = low.to_bytes(32, "little") if low < 2**256 else bytes(32)
                return entries.encode(changed(receipt.entry, signature=receipt.entry.signature[:32] + tail))
        return bytes(raw)

    def lie(self, draw: random.Random, outcome: Outcome) -> None:
        """A CLOSE as a server without shame signs it."""
        opened, words = draw.choice(self.opens)
        body = opened.body
        assert isinstance(body, Open)
        known = words.word(draw.randrange(CAME + 1))  # all that he was told
        others = draw.choice(self.opens)[1].word(draw.randrange(CAME + 1))
        word = draw.choice([known, draw.randbytes(WORD_BYTES), others, bytes([known[0] ^ 1]) + known[1:]])
        close = Close(entries.hash_of(opened), draw.randrange(2 * MOST), word)
        server, client = self.server.public_key, self.client.public_key
        reservation = Reservation(client, server, body.root, body.price, body.most_ticks, 2000, NOW, body.session)
        outcome.shown += 1
        paid = settles(server, close, reservation)
        honest = close.ticks <= CAME and close.word == words.word(close.ticks)
        outcome.paid_wrongly += paid != honest
        outcome.paid_wrongly += settles(self.stranger.public_key, close, reservation)
        outcome.refused += not paid


_L_REST = (
    27742317777372353535851937790883648493  # the group's order is 2**252 plus this: the other spelling of a scalar
)


def tamper_often(count: int, seed: int) -> Outcome:
    draw = random.Random(seed)
    outcome = Outcome()
    scene = Scene(draw)
    for number in range(count):
        if number % 20_000 == 0:
            scene = Scene(draw)
        if number % 4:
            scene.tamper(draw, outcome)
        else:
            scene.lie(draw, outcome)
    return outcome
