"""Balances as a function of entries: double entry, every event sums to zero over the accounts and the totals.

A balance is a view: it follows from the entries that one has, in the order in which one got them. `at`, the time of an
event, is that of the entry, but never later than when it was received.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from . import payword
from .account import Account, Reservation, Totals, Work
from .bodies import Ack, AnyBody, Checkpoint, Close, ForkProof, Open, Rotate, Train, Verdict
from .chain import forger
from .decay import decayed
from .favours import Favours

BURN_PERCENT = 5
VESTING_HOURS = 24
VESTING_TICKS = 150  # at the same price, that are earned after it: a server that turns false is found before they are
GRACE_S = 3600  # beyond its lifetime a reservation waits so long for a CLOSE that is on its way
SOUND, FALSE = 0, 1  # outcomes of a VERDICT
OF_TRAINING = 1  # a kind of VERDICT
MOST_WORTH = 20  # credits for a token at most: one in twenty is looked at, never fewer
LATE_S = 7 * 86_400  # and its OPEN is remembered so long: a server that was cut off may still settle; TRAINs as well

What = Literal["decayed", "vested", "reserved", "released", "paid", "earned", "burned", "minted", "confiscated"]


@dataclass(frozen=True, slots=True)
class Movement:
    """Why a balance changed. amount: of what can be spent or set aside; negative when it went away."""

    account: bytes
    what: What
    amount: int
    other: bytes = b""  # the account on the other side
    entry: bytes = b""  # hash of the entry that is the reason


Row = tuple[str, bytes]  # kind and key of a row of the projection


class Balances:
    """`apply` takes each accepted entry once. `changed` names the rows that a store has to write again."""

    def __init__(self, judges: frozenset[bytes] = frozenset()) -> None:
        """judges: keys whose verdicts create and take away credit; those of others are noted and move nothing"""
        self.judges = judges
        self.works: dict[bytes, Work] = {}  # TRAINs to be judged, by hash, the oldest first
        self.credited: dict[bytes, bytes] = {}  # account, run and round of trainings that were paid -> the VERDICT
        self.accounts: dict[bytes, Account] = {}
        self.reservations: dict[bytes, Reservation] = {}  # by hash of the OPEN
        self.early: dict[bytes, tuple[bytes, Close, bytes]] = {}  # before their OPEN: author, CLOSE, its hash
        self.owners: dict[bytes, bytes] = {}  # key -> account, for keys that took over another's
        self.favours = Favours()
        self.totals = Totals()
        self.changed: set[Row] = set()
        self._reserved_by: dict[bytes, set[bytes]] = {}  # account -> hashes of its OPENs

    def owner(self, key: bytes) -> bytes:
        """The account that a key speaks for."""
        return self.owners.get(key, key)

    def account(self, key: bytes) -> Account:
        name = self.owner(key)
        if name not in self.accounts:
            self.accounts[name] = Account(vesting={}, due={})
        self.changed.add(("account", name))
        return self.accounts[name]

    def imbalance(self) -> int:
        """0, always."""
        held = sum(a.spendable + a.reserved + a.waiting for a in self.accounts.values())
        return held + self.totals.burned + self.totals.decayed - self.totals.minted

    # Time

    def advance(self, key: bytes, at: int) -> Iterator[Movement]:
        """Bring one account up to date: release what nobody claimed, let income vest, let credit decay."""
        name, account = self.owner(key), self.account(key)
        for digest in sorted(self._reserved_by.get(name, ())):
            release_at = self.reservations[digest].release_at
            if release_at <= at:
                yield from self._release(digest)
            if release_at + LATE_S <= at:
                self._forget(name, digest)
        hour = max(account.hour, at // 3600)
        for ripe in sorted(h for h in account.vesting if h <= hour and account.due.get(h, 0) <= account.contributed):
            yield from self._decay(name, account, ripe)
            amount = account.vesting.pop(ripe)
            account.due.pop(ripe, None)
            account.spendable += amount
            yield Movement(name, "vested", amount)
        yield from self._decay(name, account, hour)

    def _decay(self, name: bytes, account: Account, hour: int) -> Iterator[Movement]:
        if hour <= account.hour:
            return
        left = decayed(account.spendable, hour - account.hour) if account.hour else account.spendable
        account.hour = hour
        lost = account.spendable - left
        if lost:
            account.spendable = left
            self._total(decayed_=lost)
            yield Movement(name, "decayed", -lost)

    def _total(self, minted: int = 0, burned: int = 0, decayed_: int = 0) -> None:
        self.totals.minted += minted
        self.totals.burned += burned
        self.totals.decayed += decayed_
        self.changed.add(("totals", b""))

    # Entries

    def apply(self, author: bytes, body: AnyBody, digest: bytes, at: int) -> list[Movement]:
        """digest: hash of the entry. Entries of one author come in the order of their numbers."""
        return list(self._apply(author, body, digest, at))

    def _apply(self, author: bytes, body: AnyBody, digest: bytes, at: int) -> Iterator[Movement]:
        match body:
            case Open():
                yield from self._open(author, body, digest, at)
            case Close():
                yield from self._close(author, body, digest, at)
            case Ack():
                pass
            case Rotate(new_key, _):
                if new_key not in self.accounts and new_key not in self.owners:
                    self.owners[new_key] = self.owner(author)
                    self.changed.add(("owner", new_key))
            case ForkProof():
                convicted = forger(body)
                if convicted is not None:
                    yield from self._convict(convicted, digest, at)
            case Train():
                yield from self._train(author, body, digest, at)
            case Verdict():
                yield from self._verdict(author, body, digest, at)
            case Checkpoint():
                pass

    def _open(self, author: bytes, body: Open, digest: bytes, at: int) -> Iterator[Movement]:
        yield from self.advance(author, at)
        client, account = self.owner(author), self.account(author)
        amount = min(body.price * body.most_ticks, account.spendable)
        account.spendable -= amount
        account.reserved += amount
        release_at = at + body.lifetime_s + GRACE_S
        server = self.owner(body.server)
        self.reservations[digest] = Reservation(
            client, server, body.root, body.price, body.most_ticks, amount, release_at, body.session
        )
        self._reserved_by.setdefault(client, set()).add(digest)
        self.changed.add(("reservation", digest))
        if amount:
            yield Movement(client, "reserved", -amount, server, digest)
        place = digest + server
        early = self.early.pop(place, None)
        if early is not None:
            self.changed.add(("early", place))
            yield from self._close(*early, at)

    def _release(self, digest: bytes) -> Iterator[Movement]:
        """Give back what is set aside."""
        reservation = self.reservations[digest]
        account = self.account(reservation.client)
        amount, reservation.amount = reservation.amount, 0
        account.reserved -= amount
        account.spendable += amount
        self.changed.add(("reservation", digest))
        if amount:
            yield Movement(reservation.client, "released", amount, reservation.server, digest)

    def _forget(self, client: bytes, digest: bytes) -> None:
        del self.reservations[digest]
        self._reserved_by[client].discard(digest)
        self.changed.add(("reservation", digest))

    def _close(self, author: bytes, body: Close, digest: bytes, at: int) -> Iterator[Movement]:
        reservation = self.reservations.get(body.open)
        if reservation is None:
            place = body.open + self.owner(author)
            if place not in self.early:
                self.early[place] = (author, body, digest)
                self.changed.add(("early", place))
            return
        if not settles(self.owner(author), body, reservation):
            return
        client, server = reservation.client, reservation.server
        yield from self._release(body.open)
        self._forget(client, body.open)
        yield from self.advance(client, at)
        payer = self.account(client)
        if not reservation.price and server != client:
            self.favours.note(client, server, body.ticks, at)
        amount = 0 if server == client else min(body.ticks * reservation.price, payer.spendable)
        if not amount:
            return
        payer.spendable -= amount
        yield Movement(client, "paid", -amount, server, digest)
        yield from self._earn(server, amount, reservation.price, client, digest, at)

    def _earn(
        self, server: bytes, amount: int, price: int, client: bytes, digest: bytes, at: int
    ) -> Iterator[Movement]:
        burn = _burned(amount)
        yield from self.advance(server, at)
        account = self.account(server)
        if account.forked:
            burn = amount
        self._total(burned=burn)
        account.contributed += amount - burn
        self._vest(account, amount - burn, VESTING_TICKS * (price - _burned(price)))
        yield Movement(server, "earned", amount - burn, client, digest)
        yield Movement(server, "burned", burn, client, digest)

    @staticmethod
    def _vest(account: Account, amount: int, further: int = 0) -> None:
        """further: credits that have to be contributed after these"""
        if not amount:
            return
        hour = account.hour + VESTING_HOURS
        account.vesting[hour] = account.vesting.get(hour, 0) + amount
        if further:
            account.due[hour] = max(account.due.get(hour, 0), account.contributed + further)

    def _train(self, author: bytes, body: Train, digest: bytes, at: int) -> Iterator[Movement]:
        worker, before = self.owner(author), self.works.pop(digest, None)
        self.changed.add(("work", digest))
        work = Work(worker, at, body.tokens, body.run + body.round.to_bytes(4, "big"))
        if before is None:
            self._note_work(digest, work)
        elif before.worker == worker and before.outcome == SOUND:
            yield from self._pay_training(work, before.credits, before.verdict, at)

    def _note_work(self, digest: bytes, work: Work) -> None:
        """The oldest are forgotten: most are never looked at."""
        self.works[digest] = work
        self.changed.add(("work", digest))
        while self.works:
            oldest = next(iter(self.works))
            if self.works[oldest].at + LATE_S > work.at:
                break
            del self.works[oldest]
            self.changed.add(("work", oldest))

    def _pay_training(self, work: Work, worth: int, verdict: bytes, at: int) -> Iterator[Movement]:
        """Once for each account, run and round, however many TRAINs it writes of it."""
        place = work.worker + work.job
        if place not in self.credited:
            self.credited[place] = verdict
            self.changed.add(("credited", place))
            yield from self.mint(work.worker, min(worth, MOST_WORTH * work.tokens), verdict, at)

    def _verdict(self, author: bytes, body: Verdict, digest: bytes, at: int) -> Iterator[Movement]:
        """Nobody judges himself. A sound TRAIN is credited once, whoever judges it again."""
        subject = self.owner(body.subject)
        if author not in self.judges or self.owner(author) == subject or body.outcome not in (SOUND, FALSE):
            return
        if body.outcome == FALSE:
            yield from self.confiscate(subject, digest, at, vested_too=False)
        if body.kind != OF_TRAINING:
            return
        work = self.works.get(body.audited)
        if work is None:
            self._note_work(body.audited, Work(subject, at, outcome=body.outcome, credits=body.credits, verdict=digest))
        elif work.outcome is None and work.worker == subject:
            del self.works[body.audited]
            self.changed.add(("work", body.audited))
            if body.outcome == SOUND:
                yield from self._pay_training(work, body.credits, digest, at)

    def mint(self, key: bytes, amount: int, digest: bytes, at: int) -> list[Movement]:
        """New credit for audited work."""
        movements = list(self.advance(key, at))
        account = self.account(key)
        if account.forked or amount <= 0:
            return movements
        self._total(minted=amount)
        account.contributed += amount
        self._vest(account, amount)
        return [*movements, Movement(self.owner(key), "minted", amount, b"", digest)]

    def confiscate(self, key: bytes, digest: bytes, at: int, vested_too: bool) -> list[Movement]:
        """Burn what waits to vest, and with `vested_too` what can be spent. What is set aside for servers stays."""
        movements = list(self.advance(key, at))
        account = self.account(key)
        amount = account.waiting + (account.spendable if vested_too else 0)
        account.vesting.clear()
        account.due.clear()
        if vested_too:
            account.spendable = 0
        self._total(burned=amount)
        return [*movements, Movement(self.owner(key), "confiscated", -amount, b"", digest)]

    def _convict(self, key: bytes, digest: bytes, at: int) -> Iterator[Movement]:
        if not self.account(key).forked:
            self.account(key).forked = True
            yield from self.confiscate(key, digest, at, vested_too=True)


def _burned(amount: int) -> int:
    return -(-amount * BURN_PERCENT // 100)


def settles(server: bytes, close: Close, reservation: Reservation) -> bool:
    """Whether this CLOSE is the named server's, and its word pays the ticks that it claims."""
    return server == reservation.server and payword.pays(
        close.word, reservation.root, close.ticks, reservation.most_ticks
    )
