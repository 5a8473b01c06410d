"""The books of the simulated economy: one ledger that everybody knows at once, with the real balances and words.

Signatures are left out: entries are taken as accepted.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from shoal.swarm.identifiers import PeerId

from .balances import Balances
from .bodies import TICK_TOKENS, WORD_BYTES, Close, Open
from .favours import Debts
from .payword import PayWords
from .simulated_kinds import Kind
from .simulated_peer import Gains, Supply
from .trust import AuditRecord

PRICE = 8  # credits a position: a model of 8 million parameters, at one server
TICK = 4 * TICK_TOKENS  # positions that a tick pays here, to save hashing
LIFETIME_S = 3600


@dataclass(frozen=True, slots=True)
class Account:
    """An OPEN, with the words that pay it."""

    client: bytes
    server: bytes
    opened: bytes
    words: PayWords


class Bank:
    """gains: by kind; what moves credit is noted there. now: unix seconds, everywhere"""

    def __init__(self, draw: random.Random, gains: Mapping[Kind, Gains]) -> None:
        self.balances = Balances()
        self.kinds: dict[bytes, Kind] = {}
        self.receipts: dict[PeerId, dict[PeerId, int]] = {}
        self._draw, self._gains = draw, gains
        self._numbers = 0
        self._owed: tuple[int, Debts] = -1, Debts({}, None, ())  # by the hour

    def new_key(self, kind: Kind) -> bytes:
        key = self._draw.randbytes(32)
        self.kinds[key] = kind
        return key

    def spendable(self, key: bytes, now: float) -> int:
        list(self.balances.advance(key, int(now)))
        return self.balances.account(key).spendable

    def open(self, client: bytes, server: bytes, ticks: int, now: float, *, paid: bool, name: bytes = b"s") -> Account:
        words = PayWords(self._draw.randbytes(WORD_BYTES), ticks)
        price, opened = TICK * PRICE if paid else 0, self._digest()
        terms = Open(server, name, words.root, price, TICK, ticks, LIFETIME_S, int(paid))
        self.balances.apply(client, terms, opened, int(now))
        return Account(client, server, opened, words)

    def settle(self, account: Account, now: float, *, garbage: bool = False) -> None:
        """All of it."""
        ticks = account.words.length
        body = Close(account.opened, ticks, account.words.word(ticks))
        for movement in self.balances.apply(account.server, body, self._digest(), int(now)):
            if movement.what == "earned" and movement.amount:
                gains = self._gains[self.kinds[movement.account]]
                gains.earned += movement.amount
                gains.stolen += movement.amount if garbage else 0
                edges = self.receipts.setdefault(name_of(account.client), {})
                edges[name_of(account.server)] = edges.get(name_of(account.server), 0) + movement.amount

    def mint(self, key: bytes, amount: int, now: float) -> None:
        for movement in self.balances.mint(key, amount, self._digest(), int(now)):
            if movement.what == "minted":
                self._gains[self.kinds[key]].minted += movement.amount

    def confiscate(self, key: bytes, now: float) -> None:
        gains = self._gains[self.kinds[key]]
        for movement in self.balances.confiscate(key, self._digest(), int(now), vested_too=True):
            if movement.what == "confiscated":
                gains.confiscated -= movement.amount
                gains.stolen = max(0, gains.stolen + movement.amount)

    def debts(self, now: float, found: Mapping[bytes, AuditRecord], out: set[bytes]) -> Debts:
        """As they stood when somebody first asked in this hour."""
        hour = int(now) // 3600
        if self._owed[0] != hour:
            self._owed = hour, self.balances.favours.debts(int(now), found, out)
        return self._owed[1]

    def close_the_day(self, day: int, now: float) -> Supply:
        for key in list(self.balances.accounts):
            list(self.balances.advance(key, int(now)))
        accounts, totals = self.balances.accounts.values(), self.balances.totals
        assert self.balances.imbalance() == 0
        self.balances.changed.clear()  # a store would write these rows
        return Supply(
            day,
            sum(a.spendable for a in accounts),
            sum(a.reserved for a in accounts),
            sum(a.waiting for a in accounts),
            totals.minted,
            totals.burned,
            totals.decayed,
        )

    def _digest(self) -> bytes:
        self._numbers += 1
        return sha256(self._numbers.to_bytes(8, "big")).digest()


def name_of(key: bytes) -> PeerId:
    return PeerId(key.hex())
