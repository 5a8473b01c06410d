"""`metering.Metering` from a ledger: what a hop asks before it serves, and how it settles afterwards."""

from collections.abc import Awaitable, Callable

import anyio

from shoal.swarm import peer_id
from shoal.swarm.errors import MalformedMessage, Refused, ShoalError
from shoal.swarm.identifiers import ModelId, PeerId, SessionId
from shoal.swarm.manifest import Manifest
from shoal.swarm.messages import Open as SessionOpen

from . import entry as entries
from .bodies import TICK_TOKENS, Open
from .chain import Accepted, Forked
from .entry import Entry
from .ledger import Ledger
from .open_limiter import OpenLimiter
from .price import tick_price
from .session_payment import Offer, offers, session_name
from .till import Stop, Till

PATIENCE_S = 10.0  # for a word that is on its way
Manifests = Callable[[ModelId], Manifest | None]
CatchUp = Callable[[PeerId, bytes, int, int], Awaitable[list[Entry]]]
"""Entries [start, stop) of an author, from a peer: (peer, author, start, stop). raises: ShoalError"""


class LedgerMeter:
    """One session at this hop."""

    def __init__(self, ledger: Ledger, till: Till, over: Callable[[], None]) -> None:
        self.shows_progress = True
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

    def take(self, word: bytes) -> None:
        before = self._till.ticks
        _go_on(self._till.take(word))
        if self._till.ticks > before:
            self._ledger.owe(self._till.opened, self._till.ticks, self._till.word)
            self._paid.set()
            self._paid = anyio.Event()

    def close(self) -> None:
        close = self._till.close()
        if close is not None:
            self._ledger.settle(close)
        self._over()


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

    async def open(self, driver: PeerId, request: SessionOpen) -> LedgerMeter | None:
        """None: without books, in the free lane. raises: Refused"""
        if not self._limiter.allow(driver, self._clock()):
            raise Refused("too many sessions at once; try again in a few seconds")
        if not request.payment:
            return None
        try:
            return await self._open(driver, request)
        except Refused:
            raise
        except MalformedMessage as error:
            raise Refused(f"the payment cannot be read: {error}") from error
        except ShoalError as error:
            self._ledger.failure = error  # a ledger that cannot be written does not stop the serving
            return None

    async def _open(self, driver: PeerId, request: SessionOpen) -> LedgerMeter | None:
        offer = offers.decode(request.payment)
        entry = entries.decode(offer.entry)
        terms = self._checked(driver, request, entry)
        if not await self._keep(driver, [entries.decode(raw) for raw in offer.before], entry):
            return None
        if self._ledger.is_forger(entry.author):
            raise Refused("this key has signed two entries for one place; its standing is gone")
        digest = entries.hash_of(entry)
        covered = await self._is_covered(digest, request, terms)
        till = Till(digest, terms, TICK_TOKENS if covered else None)
        _go_on(till.begin(offer.ticks, offer.word))
        self._note(till, offer)
        if covered:
            self.paid.add(request.session)
        return LedgerMeter(self._ledger, till, lambda: self.paid.discard(request.session))

    def _note(self, till: Till, offer: Offer) -> None:
        if offer.ticks:
            self._ledger.owe(till.opened, till.ticks, till.word)

    def _checked(self, driver: PeerId, request: SessionOpen, entry: Entry) -> Open:
        terms = entry.body
        if not isinstance(terms, Open) or terms.server != self._ledger.key:
            raise Refused("the payment is not an OPEN to this node")
        if entry.author != peer_id.public_key_of(driver):
            raise Refused("the payment is somebody else's")
        if terms.session != session_name(request.session) or terms.tick_tokens != TICK_TOKENS:
            raise Refused("the payment is for another session")
        return terms

    async def _keep(self, driver: PeerId, before: list[Entry], entry: Entry) -> bool:
        """Whether the OPEN follows what is known of its author. raises: Refused, ShoalError"""
        if any(earlier.author != entry.author for earlier in before):
            raise Refused("the payment comes with entries of others")
        verdict = (await self._ledger.receive([*before, entry]))[-1]
        if getattr(verdict, "reason", "") == "gap" and self._catch_up is not None:
            held = (await self._ledger.chain(entry.author)).length
            missing = await self._catch_up(driver, entry.author, held, entry.seq)
            verdict = (await self._ledger.receive([*missing, entry]))[-1]
        match verdict:
            case Accepted():
                return True
            case Forked():
                raise Refused("this key has signed two entries for one place; its standing is gone")
            case refused:
                if refused.reason == "gap":
                    return False  # served like somebody without credit
                raise Refused(f"the payment is refused: {refused.reason}")

    async def _is_covered(self, digest: bytes, request: SessionOpen, terms: Open) -> bool:
        """Whether all of it is set aside, at the price of these units."""
        manifest = self._manifests(request.model)
        if manifest is None or not terms.lane or terms.price < tick_price(manifest, request.span):
            return False
        kept = await self._ledger.use(lambda store: store.balances.reservations.get(digest), brief=True)
        return kept is not None and kept.amount >= terms.price * terms.most_ticks


def _go_on(stop: Stop | None) -> None:
    if stop is not None:
        raise Refused(stop.reason)
