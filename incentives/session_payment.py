"""`metering.Paying` from a ledger: what a driver offers and pays for its sessions."""

import secrets
from collections.abc import Callable

from shoal.swarm import peer_id
from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.manifest import Manifest
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.units import Span, whole

from . import entry as entries
from . import offer as offers
from .bodies import TICK_TOKENS, WORD_BYTES, Open
from .entry import Entry
from .ledger import Ledger
from .offer import MOST_BEFORE, Offer, session_name
from .payer import Payer
from .price import tick_price


class LedgerPayment:
    """One session. slice_tokens: 32 when it is paid, so that no server has more at risk

    in_advance: when it is paid. In the free lane the OPEN is a receipt for what was given, and the first token does not
    wait for a disk and a signature.
    """

    def __init__(self, ledger: Ledger, payer: Payer, manifest: Manifest, told: dict[bytes, int], *, paid: bool) -> None:
        """told: by server, how much of the own chain it has; shared by the sessions of a driver"""
        self.slice_tokens = TICK_TOKENS if paid else None
        self.in_advance = paid
        self._ledger = ledger
        self._payer = payer
        self._manifest = manifest
        self._told = told
        self._telling: dict[bytes, int] = {}

    async def opening(self, peer: PeerId, session: SessionId, span: Span) -> bytes:
        try:
            server = peer_id.public_key_of(peer)
            if server == self._ledger.key:
                return b""  # nobody pays himself
            price = tick_price(self._manifest, span) if self.in_advance else 0
            entry = await self._ledger.append(self._payer.open(server, session_name(session), price))
            first = max(self._told.get(server, 0), entry.seq - MOST_BEFORE)
            start = max(0, min(first, entry.seq - 1))  # the entry before it, in any case
            held = await self._ledger.use(lambda store: store.of(entry.author, start, entry.seq), brief=True)
        except ShoalError as error:
            self._ledger.failed(error)  # the session goes on, without receipts
            return b""
        self._telling[server] = entry.seq + 1
        ticks, word = self._payer.for_a_new_hop() if self.in_advance else (0, b"")
        return offers.encode(_offer(entry, held, first, ticks, word))

    def arrived(self, positions: int) -> None:
        self._payer.arrived(positions)
        if self._telling:  # all hops work, so they have read what came with their offers
            self._told.update(self._telling)
            self._telling.clear()

    def tick(self) -> bytes:
        return self._payer.tick()

    def word(self) -> bytes:
        return self._payer.for_a_new_hop()[1]

    def last(self) -> bytes:
        return self._payer.last()


def _offer(entry: Entry, held: list[Entry], first: int, ticks: int, word: bytes) -> Offer:
    """held: entries before it, the last of them among them; first: the first that the server may lack"""
    body = entry.body
    assert isinstance(body, Open)
    delay_s = entry.time - (held[-1].time if held else 0)
    before = tuple(entries.encode(earlier) for earlier in held if earlier.seq >= first)
    return Offer(entry.seq, bool(body.lane), delay_s, entry.signature, body.root, before, ticks, word)


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
        hops = min(request.max_hops, manifest.layers + 2)  # each rounds its price up by less than a credit a position
        most = (tick_price(manifest, whole(manifest.layers)) + TICK_TOKENS * hops) * payer.most_ticks
        return LedgerPayment(
            self._ledger, payer, manifest, self._told, paid=self._ledger.glance(self._ledger.key) >= most
        )
