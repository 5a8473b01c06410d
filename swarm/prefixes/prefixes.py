"""What a node does with KV that outlives its session: keeps it, gives it, finds it at others.

Only chunks that were computed here, exactly, in sessions whose clients share their prefix are announced and given. What
was taken from others is kept with the name of its maker and never passed on, so a false chunk stays where it was taken.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import anyio
import structlog

from shoal.compression.kv_levels import LEVELS, KvLevel
from shoal.swarm.errors import MalformedMessage, Refused, RemoteFault, ShoalError, TimedOut
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.kv.chunk_index import Label
from shoal.swarm.kv.chunk_store import ChunkStore, StoredChunk
from shoal.swarm.kv.kv_chunks import KvFormat
from shoal.swarm.members.handshake import Gate, receive_greeting
from shoal.swarm.sessions.compute import ChunkCoder
from shoal.swarm.transport import Stream, Transport

from . import chunk_wire
from .announcement import ANNOUNCEMENT_TTL_S, MOST_OF_ONE_PEER, Announcement
from .chunk_wire import Declined, Given, Missing
from .donor_link import Donor, Taker
from .fetch_past import FetchPast
from .giving_limits import GivingLimits
from .prefill_pace import PrefillPace
from .prefix_books import PrefixBooks
from .prefix_chain import Address, Link, address

log = structlog.get_logger()

AUDIT_SHARE = 0.1  # of the prompts with fetched chunks: one of those is computed all the same
ANNOUNCE_PERIOD_S = ANNOUNCEMENT_TTL_S / 3
BAN_S = 3600.0
MADE_BYTES = 64 << 20
GIVING_BYTE_S = 8 << 20
STAGED_BYTES = 512 << 20  # of chunks that were fetched and not taken in yet, for all sessions together
SILENCE_S = 15.0  # a peer that asks for nothing does not keep its stream
UNREAD_S = 60.0  # nor one that reads nothing; it would have left a donor that is slower long ago
MOST_AHEAD = 1 << 16  # chunks that were taken before any session wanted them, and are owed for when one does
FIND_S = 3.0
# How far a fetched chunk may be from what was computed (`ChunkCoder.kv_distance`): what another machine's rounding
# makes of an exact one; of the others what the level cannot explain, where this one was computed on what had lost
# something too. Measured: .002 in another dtype, .04 on a prefix at `small`; an empty chunk is at 1, other text above.
EXACT_MAY_DIFFER, LOSSY_MAY_DIFFER = 0.05, 0.2


def may_differ(level: KvLevel) -> float:
    return EXACT_MAY_DIFFER if level == "lossless" else LOSSY_MAY_DIFFER


class PrefixBoard(Protocol):
    """Who has which prefix."""

    async def announce(self, chunks: list[Address]) -> None:
        """raises: Unavailable"""

    async def find(self, root: Address) -> list[Announcement]:
        """Valid ones; [] when nobody answers in time."""

    def way_to(self, peer: PeerId) -> tuple[tuple[str, ...], float]:
        """Its addresses, and the measured round trip in seconds."""


@dataclass(slots=True)
class PrefixCounts:
    """Since the start."""

    kept: int = 0  # chunks
    reused: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    given: int = 0
    given_bytes: int = 0
    audited: int = 0
    false: int = 0


class Prefixes:
    """coder_of: what recodes and compares the chunks of a hosted model. trusts: whom chunks are taken from;
    seed: of the draw of audits, in tests; giving_byte_s: that others may take over time, 0 gives nothing away"""

    def __init__(
        self,
        store: ChunkStore,
        transport: Transport,
        gate: Gate,
        board: PrefixBoard | None,
        coder_of: Callable[[ModelId], ChunkCoder | None],
        trusts: Callable[[PeerId], bool] = lambda _: True,
        clock: Callable[[], float] = anyio.current_time,
        seed: int | None = None,
        audit_share: float = AUDIT_SHARE,
        giving_byte_s: float = GIVING_BYTE_S,
        books: PrefixBooks | None = None,
    ) -> None:
        self.store = store
        self.transport = transport
        self.gate = gate
        self.clock = clock
        self.draw = random.Random(seed).random
        self.audit_share = audit_share
        self.counts = PrefixCounts()
        self.books = books
        self.fetched_ahead: set[Address] = set()  # that no session has taken in yet
        self._board = board
        self.coder_of = coder_of
        self._trusts = trusts
        self.past = FetchPast()
        self._made: OrderedDict[tuple[Address, KvLevel], bytes] = OrderedDict()  # from what is kept, at other levels
        self._made_bytes = 0
        self._paces: dict[tuple[ModelId, tuple[int, int]], PrefillPace] = {}
        self._banned: dict[PeerId, float] = {}
        self.limits = GivingLimits(giving_byte_s, clock)
        self.staged_bytes = 0
        self._news = anyio.Event()
        self._fresh_roots: set[Address] = set()

    @property
    def me(self) -> PeerId:
        return self.transport.me

    @property
    def has_board(self) -> bool:
        return self._board is not None

    def pace(self, model: ModelId, layers: tuple[int, int]) -> PrefillPace:
        return self._paces.setdefault((model, layers), PrefillPace())

    def taker(self, addresses: Sequence[Address], kind: KvFormat, levels: tuple[KvLevel, ...]) -> Taker:
        return Taker(self.transport, self.gate, self.clock, addresses, kind, self.clock(), levels, self.past)

    # Keeping

    async def keep(self, address: Address, label: Label, data: bytes) -> None:
        await self.store.put(address, label, data)
        self.counts.kept += 1

    def tell_of(self, root: Address) -> None:
        """Chunks of this prefix are new here and may be shared."""
        self._fresh_roots.add(root)
        self._news.set()

    async def run(self) -> None:
        """Announce for ever: what is new at once, all of it now and then."""
        await self.store.restore()
        due_s = self.clock()
        while True:
            with anyio.move_on_after(max(0.0, due_s - self.clock())):
                await self._news.wait()
            self._news = anyio.Event()
            fresh, self._fresh_roots = self._fresh_roots, set()
            roots, shared = fresh, self._shared()
            if self.clock() >= due_s:
                due_s = self.clock() + ANNOUNCE_PERIOD_S
                roots = set(shared)
            newest = [root for root in reversed(shared) if root in roots][:MOST_OF_ONE_PEER]
            for root in newest:
                await self._announce(shared[root])
                if root in fresh:
                    await self._make_ahead(shared[root])

    def _shared(self) -> dict[Address, list[Address]]:
        """By prefix the addresses of its chunks in their order; what was used last stands last."""
        found: dict[Address, list[tuple[int, Address]]] = {}
        for place, label in self.store.labels().items():
            if self._gives(label):
                found.setdefault(label.root, []).append((label.number, place))
        return {root: [place for _, place in sorted(chunks)] for root, chunks in found.items() if min(chunks)[0] == 0}

    async def _announce(self, chunks: list[Address]) -> None:
        if self._board is None:
            return
        try:
            await self._board.announce(chunks)
        except ShoalError as error:
            log.info("prefix_not_announced", reason=str(error))

    def _gives(self, label: Label) -> bool:
        return bool(self.limits.byte_s) and label.shared and label.quality == "lossless" and label.maker == self.me

    # Finding

    async def donors(self, addresses: Sequence[Address], missing: frozenset[int]) -> list[Donor]:
        """Who says that it has some of the missing chunks; most of them first, then the nearest."""
        if self._board is None:
            return []
        found: list[Announcement] = []
        with anyio.move_on_after(FIND_S):
            found = await self._board.find(addresses[0])
        donors = []
        for said in found:
            if said.peer == self.me or self.is_banned(said.peer) or not self._trusts(said.peer):
                continue
            numbers = frozenset(number for number in missing if said.names(addresses[number]))
            if numbers:
                donors.append(Donor(said.peer, *self._board.way_to(said.peer), numbers))
        return sorted(donors, key=lambda donor: (-len(donor.numbers), donor.round_trip_s))

    def is_banned(self, peer: PeerId) -> bool:
        return self._banned.get(peer, 0.0) > self.clock()

    async def ban(self, peer: PeerId, reason: str) -> None:
        """It gave what no honest peer gives: nothing of it is kept, and nothing taken for a while."""
        log.warning("donor_banned", peer=peer, reason=reason)
        self._banned[peer] = self.clock() + BAN_S
        await self.store.drop(lambda _, label: label.maker == peer)

    async def fetch_ahead(self, kind: KvFormat, links: Sequence[Link], level: KvLevel) -> tuple[int, int]:
        """Take what others have of a shared prefix, at this level, before anybody asks for it here.

        returns: chunks that are held now, and how many of them came now
        """
        addresses = [address(link, *kind.layers) for link in links]
        missing = frozenset(n for n, place in enumerate(addresses) if self.store.find(place) is None)
        came: set[int] = set()
        taker = self.taker(addresses, kind, (level,))
        for donor in await self.donors(addresses, missing) if missing else ():

            async def keep(number: int, level: KvLevel, data: bytes, peer: PeerId = donor.peer) -> None:
                label = Label(kind.model, level, peer, True, addresses[0], number)
                await self.store.put(addresses[number], label, data)
                if len(self.fetched_ahead) < MOST_AHEAD:
                    self.fetched_ahead.add(addresses[number])
                self.counts.fetched += 1
                self.counts.fetched_bytes += len(data)
                came.add(number)

            try:
                await taker.take(donor, donor.numbers - came, lambda: 0, keep, lambda _, __: None)
            except RemoteFault as error:
                self.counts.false += 1
                await self.ban(donor.peer, str(error))
            except ShoalError as error:
                log.info("donor_left", peer=donor.peer, reason=str(error))
        held = sum(self.store.find(place) is not None for place in addresses)
        return held, len(came)

    # Giving

    async def serve(self) -> None:
        await self.transport.serve(chunk_wire.PROTOCOL, self._give_all)

    async def _give_all(self, stream: Stream) -> None:
        await receive_greeting(stream, self.gate)
        try:
            self.limits.enter(stream.peer)
            try:
                await self._answer(stream)
            finally:
                self.limits.leave(stream.peer)
        except Refused as error:
            await stream.send(chunk_wire.encode(Declined(str(error))))
            await stream.close()
            raise

    async def _answer(self, stream: Stream) -> None:
        """raises: Refused, MalformedMessage, StreamBroken, TimedOut"""
        while True:
            frame: bytes | None = None
            with anyio.move_on_after(SILENCE_S):
                frame = await stream.receive()
            if frame is None:
                break
            want = chunk_wire.read_want(frame)
            self.limits.check(stream.peer)
            data = await self._given(Address(want.address), want.level)
            answer = Given(want.address, want.level, data) if data is not None else Missing(want.address)
            self.limits.spend(stream.peer, len(data or b""))
            with anyio.move_on_after(UNREAD_S) as sending:
                await stream.send(chunk_wire.encode(answer))
            if sending.cancelled_caught:
                raise TimedOut(f"{stream.peer} has not read a chunk for {UNREAD_S:.0f} s")
            if self.books is not None and data is not None:
                self.books.gave(stream.peer)
        await stream.close()

    async def _given(self, address: Address, level: str) -> bytes | None:
        """raises: MalformedMessage for a level that does not exist"""
        label = self.store.find(address)
        chunk = await self.store.get(address) if label is not None and self._gives(label) else None
        if chunk is None:
            return None
        data: bytes | None = chunk.payload
        if level != "lossless":
            known = next((name for name in LEVELS if name == level), None)
            if known is None:
                raise MalformedMessage(f"there is no level {level[:16]!r}")
            data = await self._recoded(address, chunk, known)
        if data is not None:
            self.counts.given += 1
            self.counts.given_bytes += len(data)
        return data

    async def _recoded(self, address: Address, chunk: StoredChunk, level: KvLevel) -> bytes | None:
        """Made once and kept while there is room. raises: ShoalError"""
        made = self._made.get((address, level))
        if made is not None:
            self._made.move_to_end((address, level))
            return made
        coder = self.coder_of(chunk.label.model)
        if coder is None:
            return None
        made = await coder.recode_kv(chunk.payload, level)
        self._made_bytes -= len(self._made.pop((address, level), b""))  # another may have asked for it meanwhile
        self._made[address, level] = made
        self._made_bytes += len(made)
        while self._made_bytes > MADE_BYTES:
            self._made_bytes -= len(self._made.popitem(last=False)[1])
        return made

    async def _make_ahead(self, chunks: Sequence[Address]) -> None:
        """The level that is asked for most, before anybody does: a fetch waits for it otherwise."""
        for place in chunks:
            chunk = await self.store.get(place) if (place, "default") not in self._made else None
            if chunk is None:
                continue
            try:
                await self._recoded(place, chunk, "default")
            except ShoalError:
                return  # this model has no profile
