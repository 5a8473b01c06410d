"""`metering.Paying` from a ledger: what a driver offers and pays for its sessions."""

import secrets
from collections.abc import Callable
from typing import Annotated

import msgspec

from shoal.swarm import peer_id
from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import ShoalError
from shoal.swarm.generation import TokenRequest
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.manifest import Manifest
from shoal.swarm.units import Span, whole

from . import entry as entries
from .bodies import MAX_LIFETIME_S, TICK_TOKENS, WORD_BYTES, Ticks
from .ledger import Ledger
from .payer import Payer
from .price import tick_price

LIFETIME_S = 3600  # and two seconds a token
MOST_BEFORE = 200  # entries that go with an offer; a server that lacks more has to ask
MAX_OFFER_BYTES = 1 << 16


class Offer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a driver sends with `Open`.

    before: entries of its chain that the server may lack, in order; without them it could not judge the OPEN
    ticks, word: for positions that will be computed again here
    """

    entry: bytes
    before: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MOST_BEFORE)]
    ticks: Ticks
    word: bytes


offers = Canonical(Offer, "an offer of payment", MAX_OFFER_BYTES)


def session_name(session: SessionId) -> bytes:
    """As it stands in an OPEN: at most 32 bytes."""
    try:
        return bytes.fromhex(session)[:32] or b"\0"
    except ValueError:
        return session.encode()[:32] or b"\0"


class LedgerPayment:
    """One session. slice_tokens: 32 when it is paid, so that no server has more at risk"""

    def __init__(
        self,
        ledger: Ledger,
        payer: Payer,
        manifest: Manifest,
        lifetime_s: int,
        told: dict[bytes, int],
        *,
        paid: bool,
    ) -> None:
        """told: by server, how much of the own chain it has; shared by the sessions of a driver"""
        self.slice_tokens = TICK_TOKENS if paid else None
        self._ledger = ledger
        self._payer = payer
        self._manifest = manifest
        self._lifetime_s = lifetime_s
        self._paid = paid
        self._told = told
        self._telling: dict[bytes, int] = {}

    async def opening(self, peer: PeerId, session: SessionId, span: Span) -> bytes:
        try:
            server = peer_id.public_key_of(peer)
            if server == self._ledger.key:
                return b""  # nobody pays himself
            price = tick_price(self._manifest, span)
            body = self._payer.open(server, session_name(session), price, self._lifetime_s, paid=self._paid)
            entry = await self._ledger.append(body)
            start = max(self._told.get(server, 0), entry.seq - MOST_BEFORE)
            before = await self._ledger.use(lambda store: store.of(entry.author, start, entry.seq), brief=True)
        except ShoalError as error:
            self._ledger.failure = error  # the session goes on, without receipts
            return b""
        self._telling[server] = entry.seq + 1
        ticks, word = self._payer.for_a_new_hop()
        return offers.encode(Offer(entries.encode(entry), tuple(map(entries.encode, before)), ticks, word))

    def arrived(self, positions: int) -> None:
        self._payer.arrived(positions)
        if self._telling:  # all hops work, so they have read what came with their offers
            self._told.update(self._telling)
            self._telling.clear()

    def tick(self) -> bytes:
        return self._payer.tick()

    def word(self) -> bytes:
        return self._payer.for_a_new_hop()[1]


class LedgerPaying:
    """The sessions of one driver. A session is paid when there is credit for all of it, and free otherwise."""

    def __init__(self, ledger: Ledger, seeds: Callable[[], bytes] = lambda: secrets.token_bytes(WORD_BYTES)) -> None:
        self._ledger = ledger
        self._seeds = seeds
        self._told: dict[bytes, int] = {}

    def session(self, request: TokenRequest, manifest: Manifest) -> LedgerPayment | None:
        most_tokens = len(request.ids) + request.max_new_tokens
        payer = Payer(self._seeds(), most_tokens)
        if not payer.most_ticks:
            return None  # shorter than a tick: nothing would ever be paid
        account = self._ledger.store.balances.accounts.get(self._ledger.key)
        spendable = account.spendable if account else 0
        hops = min(request.max_hops, manifest.layers + 2)  # each rounds its price up by less than a credit a position
        most = (tick_price(manifest, whole(manifest.layers)) + TICK_TOKENS * hops) * payer.most_ticks
        lifetime_s = min(MAX_LIFETIME_S, LIFETIME_S + 2 * most_tokens)
        return LedgerPayment(self._ledger, payer, manifest, lifetime_s, self._told, paid=spendable >= most)
