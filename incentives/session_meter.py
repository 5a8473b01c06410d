"""`metering.Metering` from a ledger: what a hop asks before it serves, and how it settles afterwards."""

from collections.abc import Awaitable, Callable

import anyio

from shoal.swarm import peer_id
from shoal.swarm.errors import MalformedMessage, Refused, ShoalError
from shoal.swarm.identifiers import ModelId, PeerId, SessionId
from shoal.swarm.manifest import Manifest
from shoal.swarm.sessions.messages import Open as SessionOpen

from . import entry as entries
from . import offer as offers
from .bodies import TICK_TOKENS, Close, Open
from .chain import Accepted, Forked
from .entry import NO_HASH, Entry
from .ledger import Ledger
from .offer import Offer, session_name
from .open_limiter import OpenLimiter
from .price import tick_price
from .store import Store
from .till import Stop, Till

PATIENCE_S = 10.0  # for a word that is on its way
USED = "this payment was given for a session already"
Manifests = Callable[[ModelId], Manifest | None]
CatchUp = Callable[[PeerId, bytes, int, int], Awaitable[list[Entry]]]
"""Entries [start, stop) of an author, from a peer: (peer, author, start, stop). raises: ShoalError"""


class LedgerMeter:
    """One session at this hop."""

    def __init__(self, ledger: Ledger, till: Till, over: Callable[[Close | None], None]) -> None:
        """over: called at the end, with what is going to be settled"""
        self._ledger = ledger
        self._till = till
        self._over = over
        self._paid = anyio.Event()

    async def admit(self, count: int) -> None:
        stop = self._till.admit(count)
        if stop is None:
            return
        with anyio.move_on_after(PATIENCE_S):
            while stop is not None:
                await self._paid.wait()
                stop = self._till.admit(count)
        if stop is not None:
            raise Refused(stop.reason)

    def computed(self, count: int) -> None:
        self._till.compute(count)

    def given(self, count: int) -> None:
        self._till.give(count)

    def take(self, word: bytes) -> None:
        before = self._till.ticks
        _go_on(self._till.take(word))
        if self._till.ticks > before:
            ticks, word = self._till.owed
            if ticks:
                self._ledger.owe(self._till.opened, ticks, word)
            self._paid.set()
            self._paid = anyio.Event()

    def close(self) -> None:
        close = self._till.close()
        if close is not None:
            self._ledger.settle(close)
        self._over(close)


class LedgerMetering:
    """paid: names of the sessions that are paid, for whoever schedules"""

    def __init__(
        self,
        ledger: Ledger,
        manifests: Manifests,
        clock: Callable[[], float],
        catch_up: CatchUp | None = None,
        limiter: OpenLimiter | None = None,
    ) -> None:
        """clock: monotonic seconds"""
        self.paid: set[SessionId] = set()
        self._ledger = ledger
        self._manifests = manifests
        self._clock = clock
        self._catch_up = catch_up
        self._limiter = limiter or OpenLimiter()
        self._unsettled: set[bytes] = set()  # OPENs of sessions that are open, or whose CLOSE is not written yet
        ledger.on_settled.append(self._settled)

    def _settled(self, close: Entry) -> None:
        assert isinstance(close.body, Close)
        self._unsettled.discard(close.body.open)

    async def open(self, driver: PeerId, request: SessionOpen) -> LedgerMeter | None:
        """None: without books, in the free lane. raises: Refused"""
        if not self._limiter.allow(driver, self._clock()):
            raise Refused("too many sessions at once; try again in a few seconds")
        if not request.payment:
            return None
        return await self._answer(driver, request, request.payment, late=False)

    async def open_late(self, driver: PeerId, request: SessionOpen, payment: bytes) -> LedgerMeter | None:
        """In the free lane, whatever the payment is worth. raises: Refused"""
        return await self._answer(driver, request, payment, late=True)

    async def _answer(self, driver: PeerId, request: SessionOpen, payment: bytes, *, late: bool) -> LedgerMeter | None:
        try:
            return await self._open(driver, request, offers.decode(payment), late=late)
        except Refused:
            raise
        except MalformedMessage as error:
            raise Refused(f"the payment cannot be read: {error}") from error
        except ShoalError as error:
            self._ledger.failed(error)  # a ledger that cannot be written does not stop the serving
            return None

    async def _open(self, driver: PeerId, request: SessionOpen, offer: Offer, *, late: bool) -> LedgerMeter | None:
        price = self._price(request) if offer.paid else 0
        if price is None:
            return None
        server = self._ledger.key
        terms = offers.terms(server, session_name(request.session), offer.root, request.max_tokens, price)
        entry = await self._keep(driver, offer, terms)
        if entry is None:
            return None
        if self._ledger.is_forger(entry.author):
            raise Refused("this key has signed two entries for one place; its standing is gone")
        digest = entries.hash_of(entry)
        if digest in self._unsettled:
            raise Refused(USED)
        self._unsettled.add(digest)  # before anything is waited for: of two that come at once one is served
        try:
            till, covered = await self._till(digest, terms, offer, late=late)
        except BaseException:
            self._unsettled.discard(digest)
            raise
        self._note(till, offer)
        if covered:
            self.paid.add(request.session)

        def over(close: Close | None) -> None:
            self.paid.discard(request.session)
            if close is None:
                self._unsettled.discard(digest)

        return LedgerMeter(self._ledger, till, over)

    async def _till(self, digest: bytes, terms: Open, offer: Offer, *, late: bool) -> tuple[Till, bool]:
        """With whether all that it may take is set aside. raises: Refused, ShoalError"""
        if await self._ledger.use(lambda store: store.is_owed(digest), brief=True):  # by a process before this one
            raise Refused(USED)
        covered = not late and await self._is_covered(digest, terms)
        till = Till(digest, terms, TICK_TOKENS if covered else None)
        _go_on(till.begin(offer.ticks, offer.word))
        return till, covered

    def _price(self, request: SessionOpen) -> int | None:
        """None for a model that is not known here (any more)."""
        manifest = self._manifests(request.model)
        return None if manifest is None else tick_price(manifest, request.span)

    def _note(self, till: Till, offer: Offer) -> None:
        if offer.ticks:
            self._ledger.owe(till.opened, till.ticks, till.word)

    async def _keep(self, driver: PeerId, offer: Offer, terms: Open) -> Entry | None:
        """The OPEN, made anew, judged and kept; None when entries before it are missing. raises: Refused, ShoalError"""
        author = peer_id.public_key_of(driver)
        before = [entries.decode(raw) for raw in offer.before]
        if any(earlier.author != author for earlier in before):
            raise Refused("the payment comes with entries of others")
        followed = await self._entry_before(author, offer.seq, before)
        if offer.seq and followed is None and self._catch_up is not None:
            held = (await self._ledger.chain(author)).length
            before += await self._catch_up(driver, author, held, offer.seq)
            followed = await self._entry_before(author, offer.seq, before)
        if offer.seq and followed is None:
            return None  # served like somebody without credit
        prev = NO_HASH if offer.seq else await self._ledger.use(lambda store: _handed_over(store, author), brief=True)
        entry = offers.rebuilt(offer, author, followed, terms, prev)
        match (await self._ledger.receive([*before, entry]))[-1]:
            case Accepted():
                return entry
            case Forked():
                raise Refused("this key has signed two entries for one place; its standing is gone")
            case refused if refused.reason == "known":  # the catching up of another session brought it
                return entry
            case refused if refused.reason == "gap":
                return None
            case refused:
                raise Refused(f"the payment is refused: {refused.reason}")

    async def _entry_before(self, author: bytes, seq: int, shown: list[Entry]) -> Entry | None:
        """As its author shows it, or as it stands in the store."""
        for entry in shown:
            if (entry.author, entry.seq) == (author, seq - 1):
                return entry
        return await self._ledger.use(lambda store: store.find(author, seq - 1), brief=True) if seq else None

    async def _is_covered(self, digest: bytes, terms: Open) -> bool:
        """Whether all of it is set aside."""
        if not terms.price:
            return False
        kept = await self._ledger.use(lambda store: store.balances.reservations.get(digest), brief=True)
        return kept is not None and kept.amount >= terms.price * terms.most_ticks


def _handed_over(store: Store, author: bytes) -> bytes:
    """What the first entry of an author follows: the ROTATE of the key before it, if there was one."""
    return next((chain.head for chain in store.chains.values() if chain.successor == author), NO_HASH)


def _go_on(stop: Stop | None) -> None:
    if stop is not None:
        raise Refused(stop.reason)
