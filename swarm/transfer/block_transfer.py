"""Blocks from several donors at once: who is asked for what, and what becomes of donors that lie, hang or die.

Sans-io: `handle(event, now) -> effects`. Each block comes whole from one donor, in pieces small enough for a call, so
the first bad block names its donor, who is dropped at once. Where no block is free any more, a donor with nothing to do
takes over what another brings, when it would be here sooner by their measured speeds or the other has fallen silent. So
a donor that was killed costs the transfer about HEDGE_S and no more. No byte is kept that a hash did not vouch for;
memory is bounded by two blocks for each donor.
"""

import hashlib
import random
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, assert_never

from shoal.swarm.identifiers import PeerId

from .block_transfer_listing import Listing, block_size
from .block_transfer_speed import Speed

PIECE_BYTES = 64 << 10  # of the first question to a donor
MIN_PIECE_BYTES = 16 << 10
MAX_PIECE_BYTES = 192 << 10
MAX_WINDOW = 8  # questions under way to one donor
OPEN_BLOCKS = 2  # of one donor; the second one keeps the questions flowing while the first ends
QUICK_S, SLOW_S = 0.25, 1.0  # answers that take less or more change how much a donor is asked for
HEDGE_S = 1.0
STEAL_GAIN = 1.25  # a block changes hands only when that is faster by so much
MAX_FAILURES = 3  # without an answer in between
PAUSE_S = 0.5  # after a failure; doubles with each
MAX_WAIT_S = 30.0  # a donor that only ever says "later" counts as one that failed


@dataclass(frozen=True, slots=True, order=True)
class Block:
    file: int  # index in the listing
    number: int


@dataclass(frozen=True, slots=True)
class Joined:
    """A donor is there, or holds other blocks than before. have: None for all of the listing"""

    donor: PeerId
    have: frozenset[Block] | None = None


@dataclass(frozen=True, slots=True)
class Arrived:
    donor: PeerId
    ask: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Postponed:
    """The donor is at its limit and says when to ask again."""

    donor: PeerId
    ask: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """how: silent donors are tried again, the others are not"""

    donor: PeerId
    ask: int
    reason: str
    how: Literal["silent", "refused", "lying"]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Joined | Arrived | Postponed | Failed | Tick


@dataclass(frozen=True, slots=True)
class Ask:
    donor: PeerId
    ask: int
    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Store:
    """A verified block, to be written at `offset`."""

    file: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Dropped:
    """fault: it sent what no honest donor sends"""

    donor: PeerId
    reason: str
    fault: bool


Effect = Ask | Store | Dropped


@dataclass(slots=True, eq=False)
class _Partial:
    """A block under way from one donor."""

    block: Block
    size: int
    began_at: float
    asked: int = 0  # bytes
    again: list[tuple[int, int]] = field(default_factory=list)  # offset, length: asked for and not given
    pieces: dict[int, bytes] = field(default_factory=dict)
    got: int = 0


@dataclass(slots=True, eq=False)
class _Asked:
    partial: _Partial
    offset: int  # within the block
    length: int
    at: float


@dataclass(slots=True, eq=False)
class _Donor:
    peer: PeerId
    answered_at: float  # with data
    heard_at: float  # with anything; or since when it has something to answer
    have: frozenset[Block] | None = None
    speed: Speed = field(default_factory=Speed)
    piece_bytes: int = PIECE_BYTES
    window: int = 2
    asks: dict[int, _Asked] = field(default_factory=dict)
    partials: list[_Partial] = field(default_factory=list)
    failures: int = 0
    resume_at: float = 0.0

    def judge(self, took_s: float) -> None:
        """Ask for more of quick donors and less of slow ones, so that an answer takes about half a second at most."""
        if took_s < QUICK_S:
            if self.piece_bytes < MAX_PIECE_BYTES:
                self.piece_bytes = min(MAX_PIECE_BYTES, self.piece_bytes * 2)
            else:
                self.window = min(MAX_WINDOW, self.window + 1)
        elif took_s > SLOW_S:
            self.window = max(1, self.window - 1)
            if self.window == 1:
                self.piece_bytes = max(MIN_PIECE_BYTES, self.piece_bytes // 2)

    def holds(self, block: Block) -> bool:
        return self.have is None or block in self.have

    def is_silent(self, now: float) -> bool:
        return self.failures > 0 or (bool(self.asks) and self.heard_at + HEDGE_S <= now)

    def expected_s(self, block: Block, now: float) -> float | None:
        """Until it will have brought a block that it is at; None when its speed is not known."""
        if self.is_silent(now):
            return float("inf")
        left = 0
        for partial in self.partials:
            left += partial.size - partial.got
            if partial.block == block:
                break
        return self.speed.seconds_for(left)


class BlockTransfer:
    """Blocks of one listing on their way.

    have: those that are on disk and verified; wanted: None for all; order: shuffles the blocks, so that several
    receivers that begin together soon have something for one another
    """

    def __init__(
        self,
        listing: Listing,
        have: Collection[Block] = (),
        wanted: Collection[Block] | None = None,
        order: random.Random | None = None,
    ) -> None:
        self.listing = listing
        every = all_blocks(listing) if wanted is None else sorted(wanted)
        self._every = frozenset(every)
        self._missing = set(every) - set(have)
        if order is not None:
            order.shuffle(every)
        self._free = deque(block for block in every if block in self._missing)
        self._donors: dict[PeerId, _Donor] = {}
        self._asks = 0
        self.total_bytes = sum(map(self._size, every))
        self.kept_bytes = self.total_bytes - sum(map(self._size, self._missing))  # of an earlier attempt
        self.stored_bytes = self.kept_bytes

    @property
    def done(self) -> bool:
        return not self._missing

    @property
    def stuck(self) -> bool:
        """Nobody is left to ask for anything that is missing."""
        return bool(self._missing) and not any(
            donor.partials or donor.have is None or not donor.have.isdisjoint(self._missing)
            for donor in self._donors.values()
        )

    @property
    def kept_blocks(self) -> set[Block]:
        """Those that are verified so far."""
        return set(self._every - self._missing)

    @property
    def donors(self) -> tuple[PeerId, ...]:
        return tuple(self._donors)

    def late_donors(self, now: float) -> set[PeerId]:
        """Those that have owed an answer for longer than a donor may without being doubted."""
        return {
            donor.peer
            for donor in self._donors.values()
            if any(asked.at + HEDGE_S <= now for asked in donor.asks.values())
        }

    def wake_at(self, now: float) -> float | None:
        """When `Tick` should come if nothing else does."""
        times = [donor.resume_at for donor in self._donors.values()]
        times += [donor.heard_at + HEDGE_S for donor in self._donors.values() if donor.asks]
        times += [partial.began_at + HEDGE_S for donor in self._donors.values() for partial in donor.partials]
        return min((time for time in times if time > now), default=None)

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects: list[Effect] = []
        match event:
            case Joined(peer, have):
                self._donors.setdefault(peer, _Donor(peer, now, now)).have = have
            case Arrived(peer, ask, data):
                effects += self._arrived(peer, ask, data, now)
            case Postponed(peer, ask, wait_s):
                effects += self._postponed(peer, ask, wait_s, now)
            case Failed():
                effects += self._failed(event, now)
            case Tick():
                pass
            case _:
                assert_never(event)
        if not self.done:
            # whoever has least under way chooses first, so that no donor takes all that is left
            for donor in sorted(self._donors.values(), key=lambda donor: len(donor.asks)):
                effects += self._fill(donor, now)
        return effects

    def _fill(self, donor: _Donor, now: float) -> Iterable[Effect]:
        while len(donor.asks) < donor.window and donor.resume_at <= now:
            partial = next((p for p in donor.partials if p.again or p.asked < p.size), None)
            if partial is None:
                block = self._take(donor, now) if len(donor.partials) < OPEN_BLOCKS else None
                if block is None:
                    return
                partial = _Partial(block, self._size(block), now)
                donor.partials.append(partial)
            if partial.again:
                offset, length = partial.again.pop()
            else:
                offset, length = partial.asked, min(donor.piece_bytes, partial.size - partial.asked)
                partial.asked += length
            self._asks += 1
            if not donor.asks:
                donor.heard_at = now
                donor.speed.begin(now)
            donor.asks[self._asks] = _Asked(partial, offset, length, now)
            start = partial.block.number * self.listing.block_bytes
            yield Ask(donor.peer, self._asks, self.listing.files[partial.block.file].name, start + offset, length)

    def _take(self, donor: _Donor, now: float) -> Block | None:
        """A block that nobody brings; or else one that would be here sooner than from whoever is at it."""
        passed: list[Block] = []
        found: Block | None = None
        while self._free and found is None:
            block = self._free.popleft()
            if block not in self._missing:
                continue
            if donor.holds(block):
                found = block
            else:
                passed.append(block)
        self._free.extendleft(reversed(passed))
        return found or self._stolen(donor, now)

    def _stolen(self, donor: _Donor, now: float) -> Block | None:
        """The block of another that would take longest, if this donor would be clearly faster."""
        mine = {partial.block for partial in donor.partials}
        waits: dict[Block, float] = {}
        for other in self._donors.values():
            for partial in other.partials:
                if other is donor or partial.block in mine or not donor.holds(partial.block):
                    continue
                expected_s = other.expected_s(partial.block, now)
                if expected_s is None:  # nothing has come of it yet
                    expected_s = 0.0 if now < partial.began_at + HEDGE_S else float("inf")
                waits[partial.block] = min(waits.get(partial.block, float("inf")), expected_s)
        left = sum(partial.size - partial.got for partial in donor.partials)

        def gains(block: Block) -> bool:
            own_s = donor.speed.seconds_for(left + self._size(block))
            return waits[block] > (0.0 if own_s is None else own_s * STEAL_GAIN)

        return max((block for block in waits if gains(block)), key=lambda block: (waits[block], block), default=None)

    def _arrived(self, peer: PeerId, ask: int, data: bytes, now: float) -> Iterable[Effect]:
        donor, asked = self._settle(peer, ask)
        if donor is None or asked is None:
            return
        donor.judge(now - asked.at)
        donor.failures, donor.answered_at, donor.heard_at = 0, now, now
        donor.speed.add(len(data), now)
        partial = asked.partial
        if len(data) != asked.length:
            yield self._drop(donor, f"sent {len(data)} bytes where {asked.length} were asked for", fault=True)
            return
        if partial not in donor.partials:
            return  # another donor was first
        partial.pieces[asked.offset] = data
        partial.got += len(data)
        if partial.got < partial.size:
            return
        whole = b"".join(partial.pieces[offset] for offset in sorted(partial.pieces))
        file = self.listing.files[partial.block.file]
        if hashlib.sha256(whole).digest() != file.blocks[partial.block.number]:
            yield self._drop(donor, f"sent a bad block {partial.block.number} of {file.name}", fault=True)
            return
        self._missing.discard(partial.block)
        self.stored_bytes += partial.size
        for other in self._donors.values():
            other.partials = [p for p in other.partials if p.block != partial.block]
        yield Store(file.name, partial.block.number * self.listing.block_bytes, whole)

    def _postponed(self, peer: PeerId, ask: int, wait_s: float, now: float) -> Iterable[Effect]:
        donor, asked = self._settle(peer, ask)
        if donor is None or asked is None:
            return
        if now - donor.answered_at > MAX_WAIT_S:
            yield self._drop(donor, f"gave nothing for {MAX_WAIT_S:.0f} s", fault=False)
            return
        self._unask(donor, asked)
        donor.heard_at = now
        donor.resume_at = max(donor.resume_at, now + min(max(wait_s, 0.01), MAX_WAIT_S))

    def _failed(self, event: Failed, now: float) -> Iterable[Effect]:
        donor, asked = self._settle(event.donor, event.ask)
        if donor is None or asked is None:
            return
        if now > donor.resume_at or not donor.failures:  # questions that fail together count once
            donor.failures += 1
        if event.how != "silent" or donor.failures >= MAX_FAILURES:
            yield self._drop(donor, event.reason, fault=event.how == "lying")
            return
        self._unask(donor, asked)
        donor.resume_at = max(donor.resume_at, now + PAUSE_S * 2 ** (donor.failures - 1))

    def _settle(self, peer: PeerId, ask: int) -> tuple[_Donor | None, _Asked | None]:
        donor = self._donors.get(peer)
        return donor, donor.asks.pop(ask, None) if donor is not None else None

    def _unask(self, donor: _Donor, asked: _Asked) -> None:
        asked.partial.again.append((asked.offset, asked.length))
        donor.window = max(1, donor.window // 2)

    def _drop(self, donor: _Donor, reason: str, *, fault: bool) -> Dropped:
        """What has come of its blocks does not count: a block is one donor's work, or nobody could be blamed for it."""
        del self._donors[donor.peer]
        others = {partial.block for other in self._donors.values() for partial in other.partials}
        for partial in reversed(donor.partials):
            if partial.block not in others and partial.block in self._missing:
                self._free.appendleft(partial.block)
        return Dropped(donor.peer, reason, fault)

    def _size(self, block: Block) -> int:
        return block_size(self.listing.files[block.file], block.number, self.listing.block_bytes)


def all_blocks(listing: Listing) -> list[Block]:
    return [Block(i, n) for i, file in enumerate(listing.files) for n in range(len(file.blocks))]
