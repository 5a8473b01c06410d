"""The prefix of one session at one hop: what of it is held, what is fetched, what is taken in, what is kept.

The driver gave the links. What lies here is held at once; what others have is fetched while the prompt is computed. The
driver hears of each chunk and tells the first hop what all others hold; the first hop decides what is skipped, and
those behind it see a gap in what comes and fill it from what they hold.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import anyio
import structlog

from shoal.compression.kv_levels import CHUNK_TOKENS, KvLevel
from shoal.swarm.errors import BadChunk, MalformedMessage, OutOfMemory, Refused, RemoteFault, ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.kv.chunk_index import Label
from shoal.swarm.sessions.compute import Compute
from shoal.swarm.sessions.messages import Keep, Open, Prefix, Reused, Skippable, Staged
from shoal.swarm.transfer.chunk_ranges import numbers_in, ranges_of
from shoal.swarm.units import has_embed

from .donor_link import EXACT, FAST, Donor
from .prefix_chain import LINK_BYTES, MAX_LINKS, Link, address
from .prefix_race import SMALLEST_PIECE, PrefixRace, Step, Wait, frontier_of
from .prefix_race import Compute as ComputeStep
from .prefixes import STAGED_BYTES, Prefixes, may_differ

log = structlog.get_logger()

LEAST_WORTH_S = 0.1  # a prompt that is computed sooner is not looked for
MOST_DONORS = 3  # tried one after the other
SETTLE_S = 5.0  # for keeping what is left when the driver has gone

Tell = Callable[[Staged | Reused], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class HeldChunk:
    """maker: this node for what lies here. data: None while it lies in the store"""

    maker: PeerId
    level: KvLevel
    data: bytes | None


class HopPrefix:
    """leads: this hop is fed by the driver and decides; alone: there is no other in the chain"""

    counts_as_work = True  # what is taken in is paid like what is computed

    def __init__(
        self, prefixes: Prefixes, request: Open, wish: Prefix, compute: Compute, *, leads: bool, alone: bool
    ) -> None:
        self.leads = leads
        self._alone = alone
        self._prefixes = prefixes
        self._request = request
        self._wish = wish
        self._compute = compute
        self._kind = compute.kv_format(request.span)
        self._layers = self._kind.layers
        self._addresses = [address(Link(link), *self._layers) for link in wish.links]
        self._chunks = len(wish.links)
        self._staged: dict[int, HeldChunk] = {}
        self._others: frozenset[int] = frozenset()
        self._news = anyio.Event()
        self._growth = anyio.Event()
        self._arrived: list[int] = []  # chunks to be decoded before it is their turn
        self._placing = anyio.Lock()
        self._held = 0  # positions
        self._working_at = 0  # the end of what is computed now
        self._kept = 0  # chunks
        self._first_token = False
        self._taint = False  # something was taken in that had lost something
        self._taken: set[PeerId] = set()
        self._owed = Counter[PeerId]()  # chunks that came from others for this session and were taken in
        self._pace = prefixes.pace(request.model, self._layers)
        self._audited = self._drawn()
        self._least: KvLevel = (EXACT if wish.exact or not self._kind.profile else FAST)[-1]
        now = prefixes.clock()
        promise_s = prefixes.past.predicted_s(self._chunks, self._least, now, self._kind.dtype) if wish.shared else None
        self._race = PrefixRace(self._chunks, self._pace, now, self._audited, promise_s, alone=alone)
        self._tell: Tell | None = None
        self._find_here()

    def _drawn(self) -> int | None:
        """The chunk that is computed although it need not be, now and then; not for what this node alone has made."""
        prefixes = self._prefixes
        if not (self._wish.shared and self._chunks and prefixes.draw() < prefixes.audit_share):
            return None
        number = int(prefixes.draw() * self._chunks)
        label = prefixes.store.find(self._addresses[number])
        return None if self._alone and label is not None and label.maker == prefixes.me else number

    # What is held

    def _find_here(self) -> None:
        for number, place in enumerate(self._addresses):
            label = self._prefixes.store.find(place)
            if label is not None and (label.quality == "lossless" or not self._wish.exact):
                self._staged[number] = HeldChunk(label.maker, label.quality, None)
        self._prefixes.store.pin(self._addresses)
        self._race.everybody_holds(self._common(), self._prefixes.clock(), fetched=False)
        self._looks = self._is_worth_a_look()
        self._race.expect((), searching=self._looks and len(self._staged) < self._chunks)

    def _is_worth_a_look(self) -> bool:
        computing_s = self._pace.seconds(0, self._chunks * CHUNK_TOKENS)
        if not (self._wish.shared and self._chunks and self._prefixes.has_board):
            return False
        past, now = self._prefixes.past, self._prefixes.clock()
        worth_it = computing_s is None or computing_s > LEAST_WORTH_S
        return worth_it and past.is_worth_a_look(self._chunks, self._least, computing_s, now, self._kind.dtype)

    def staged(self, *, fetched: bool = False) -> Staged:
        return Staged(ranges_of(self._staged), fetched)

    def others_hold(self, said: Skippable) -> None:
        """raises: MalformedMessage"""
        self._others = numbers_in(said.chunks)
        self._note_common(fetched=said.fetched)

    def _common(self) -> frozenset[int]:
        return frozenset(self._staged if self._alone else self._staged.keys() & self._others)

    def _note_common(self, *, fetched: bool) -> None:
        self._race.everybody_holds(self._common(), self._prefixes.clock(), fetched=fetched)
        self._news.set()
        self._news = anyio.Event()

    # Fetching

    async def run(self, tell: Tell) -> None:
        """Beside the session: fetch, then keep what grows."""
        self._tell = tell
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._fetch)
            tasks.start_soon(self._place_arrived)
            while True:
                await self._growth.wait()
                self._growth = anyio.Event()
                await self.keep()

    async def _fetch(self) -> None:
        missing = frozenset(range(self._chunks)) - self._staged.keys()
        if not self._looks or not missing:
            return
        levels = EXACT if self._wish.exact else FAST
        taker = self._prefixes.taker(self._addresses, self._kind, levels)
        expect = partial(self._race.expect, searching=False)
        try:
            donors = await self._prefixes.donors(self._addresses, missing)
            for donor in donors[:MOST_DONORS]:
                if not self._missing_of(donor):
                    continue
                try:
                    await taker.take(
                        donor, self._missing_of(donor), self._frontier, partial(self._stage, donor.peer), expect
                    )
                except RemoteFault as error:
                    await self._distrust(donor.peer, str(error))
                except ShoalError as error:
                    log.info("donor_left", peer=donor.peer, reason=str(error))
        finally:
            self._race.expect((), searching=False)
            self._note_common(fetched=False)

    async def _place_arrived(self) -> None:
        """Decode what has come while more is on its way, so that little is left to do when it is taken in."""
        while True:
            news = self._news
            while self._arrived:
                async with self._placing:
                    number = self._arrived.pop(0)
                    held = self._staged.get(number)
                    if held is None or held.data is None or number < self._frontier():
                        continue
                    try:
                        await self._compute.place_kv(self._request.session, held.data)
                    except BadChunk as error:
                        await self._distrust(held.maker, str(error))
                    except ShoalError as error:
                        log.info("chunk_not_placed", reason=str(error))  # it is decoded when it is its turn
            await news.wait()

    def _missing_of(self, donor: Donor) -> set[int]:
        return {number for number in donor.numbers if number >= self._frontier() and number not in self._staged}

    def _frontier(self) -> int:
        """The first chunk that is neither computed nor being computed."""
        return frontier_of(self._working_at)

    async def _stage(self, donor: PeerId, number: int, level: KvLevel, data: bytes) -> None:
        if self._prefixes.is_banned(donor):
            raise Refused("what it gave before is false")
        self._prefixes.counts.fetched += 1
        self._prefixes.counts.fetched_bytes += len(data)
        if self._prefixes.staged_bytes + len(data) > STAGED_BYTES:
            raise OutOfMemory(f"{STAGED_BYTES >> 20} MiB wait to be taken in already")  # nobody has looked inside yet
        self._prefixes.staged_bytes += len(data)
        self._staged[number] = HeldChunk(donor, level, data)
        self._arrived.append(number)
        self._note_common(fetched=True)
        if self._tell is not None:
            await self._tell(self.staged(fetched=True))

    def _unstage(self, number: int) -> None:
        held = self._staged.pop(number, None)
        if held is not None and held.data is not None:
            self._prefixes.staged_bytes -= len(held.data)

    async def _distrust(self, donor: PeerId, reason: str) -> None:
        """Nothing that it gave is used from here on."""
        self._prefixes.counts.false += 1
        for number in [number for number, held in self._staged.items() if held.maker == donor]:
            self._unstage(number)
        self._note_common(fetched=False)
        await self._prefixes.ban(donor, reason)  # from here on `_stage` takes nothing of it
        if self._tell is not None:
            await self._tell(self.staged())

    # Feeding

    async def next(self, position: int, count: int) -> Step:
        """What the first hop does with `count` positions at hand; it waits here where that pays."""
        while True:
            now, news = self._prefixes.clock(), self._news
            step = self._race.next(position, count, now)
            if isinstance(step, ComputeStep):
                self._working_at = position + step.count
            if not isinstance(step, Wait):
                return step
            with anyio.move_on_after(step.until_s - now):
                await news.wait()

    async def fill(self, start: int, stop: int) -> int:
        """Take in what is held of [start, stop). returns: where that ends, `stop` unless a chunk is false

        raises: Refused, LocalFault
        """
        here = fetched = 0
        position = start
        while position < stop:
            number = position // CHUNK_TOKENS
            held = self._staged.get(number)
            data = await self._data_of(number, held)
            if held is None or data is None:
                self._unstage(number)
                self._note_common(fetched=False)
                break
            began_s = self._prefixes.clock()
            try:
                async with self._placing:
                    position = await self._compute.import_kv(self._request.session, position, [data])
            except BadChunk as error:
                await self._distrust(held.maker, str(error))
                break
            self._prefixes.past.note_taken_in(held.level, self._prefixes.clock() - began_s)
            self._taint = self._taint or held.level != "lossless"
            came = position - max(start, number * CHUNK_TOKENS)
            if held.maker == self._prefixes.me:
                here += came
            else:
                fetched += came
                self._taken.add(held.maker)
                if held.data is not None or self._addresses[number] in self._prefixes.fetched_ahead:
                    self._prefixes.fetched_ahead.discard(self._addresses[number])
                    self._owed[held.maker] += 1
                await self._remember(number, held, data)
        self._held = self._working_at = position
        self._prefixes.counts.reused += -(-(here + fetched) // CHUNK_TOKENS)
        if self._tell is not None and position > start:
            await self._tell(Reused(here, fetched))
        return position

    async def give_up(self, error: ShoalError) -> None:
        """What is held cannot be taken in here: it counts as not held."""
        log.warning("prefix_not_taken_in", reason=str(error))
        for number in tuple(self._staged):
            self._unstage(number)
        self._note_common(fetched=False)
        if self._tell is not None:
            await self._tell(self.staged())

    async def _data_of(self, number: int, held: HeldChunk | None) -> bytes | None:
        if held is None or held.data is not None:
            return held.data if held is not None else None
        chunk = await self._prefixes.store.get(self._addresses[number])
        return chunk.payload if chunk is not None else None

    async def _remember(self, number: int, held: HeldChunk, data: bytes) -> None:
        """So that the next session here need not fetch it; with the name of its maker, it is not passed on."""
        if held.data is not None:
            await self._prefixes.store.put(self._addresses[number], self._label(number, held.level, held.maker), data)
            self._unstage(number)
            self._staged[number] = HeldChunk(held.maker, held.level, None)

    def _label(self, number: int, quality: KvLevel, maker: PeerId) -> Label:
        return Label(self._request.model, quality, maker, self._wish.shared, self._addresses[0], number)

    async def computed(self, start: int, count: int, took_s: float, *, wants_token: bool) -> bool:
        """Positions were computed. returns: whether what was taken in before may be believed"""
        self._held = start + count
        self._working_at = max(self._working_at, self._held)
        if count >= CHUNK_TOKENS or (count >= SMALLEST_PIECE and not self._pace.is_known):
            self._pace.note(start, count, took_s)
        if wants_token:
            self._first_token = True
            self._growth.set()
        number = start // CHUNK_TOKENS
        if self.leads and number != self._audited:
            return True  # it came while it was computed: comparing would cost the answer time
        held = self._staged.get(number)
        if held is None or held.maker == self._prefixes.me or start % CHUNK_TOKENS or count != CHUNK_TOKENS:
            return True
        return await self._is_true(number, held)

    async def _is_true(self, number: int, held: HeldChunk) -> bool:
        """Compare a chunk that was computed although it had been fetched."""
        claimed = await self._data_of(number, held)
        if claimed is None:
            return True
        start = number * CHUNK_TOKENS
        coder = self._prefixes.coder_of(self._request.model)
        if coder is None:
            return True
        level = "default" if self._taint and held.level == "lossless" else held.level
        try:
            (own,) = await self._compute.export_kv(self._request.session, start, start + CHUNK_TOKENS)
            distance = await coder.kv_distance(own, claimed, level)
        except BadChunk as error:
            await self._distrust(held.maker, str(error))
            return held.maker not in self._taken
        except ShoalError as error:  # these layers are being let go: nothing is known then
            log.info("prefix_not_audited", reason=str(error))
            return True
        self._prefixes.counts.audited += 1
        limit = may_differ(level)
        if distance <= limit:
            return True
        await self._distrust(held.maker, f"chunk {number} is {distance:.3f} from what was computed, {limit} may be")
        return held.maker not in self._taken

    # Keeping

    def grow(self, told: Keep) -> None:
        """raises: MalformedMessage"""
        known = len(self._addresses)
        if not 0 <= told.first <= known or told.first + len(told.links) > MAX_LINKS:
            raise MalformedMessage(f"links from {told.first} on; {known} are known")
        if any(len(link) != LINK_BYTES for link in told.links):
            raise MalformedMessage("a link of another length")
        self._addresses += [address(Link(link), *self._layers) for link in told.links[known - told.first :]]
        self._growth.set()

    async def keep(self) -> None:
        """What is complete of the chunks with known links; nothing that stands on what others gave, or on a loss."""
        store, before = self._prefixes.store, self._kept
        while not (self._taint or self._taken) and self._kept < min(len(self._addresses), self._held // CHUNK_TOKENS):
            number = self._kept
            place = self._addresses[number]
            known = store.find(place)
            if known is None or known.quality != "lossless" or (self._wish.shared and not known.shared):
                start = number * CHUNK_TOKENS
                try:
                    (data,) = await self._compute.export_kv(self._request.session, start, start + CHUNK_TOKENS)
                except ShoalError as error:
                    log.info("chunk_not_kept", reason=str(error))
                    return
                await self._prefixes.keep(place, self._label(number, "lossless", self._prefixes.me), data)
            self._kept += 1
        if self._wish.shared and self._kept > before:
            self._prefixes.tell_of(self._addresses[0])

    async def settle(self) -> None:
        """The session ends: keep what is left, and owe for what others gave."""
        if self._first_token:
            for donor, chunks in self._owed.items():
                if self._prefixes.books is not None and not self._prefixes.is_banned(donor):
                    self._prefixes.books.took(donor, self._request, chunks)
            with anyio.move_on_after(SETTLE_S, shield=True):
                await self.keep()

    def close(self) -> None:
        for number in tuple(self._staged):
            self._unstage(number)
        self._prefixes.store.unpin(self._addresses[: self._chunks])
        self._prefixes.store.used(self._addresses)


def begun(prefixes: Prefixes | None, request: Open, compute: Compute) -> HopPrefix | None:
    """None: this session computes all of its prompt, and nothing of it is kept. raises: MalformedMessage"""
    wish = request.prefix
    if prefixes is None or wish is None:
        return None
    if len(wish.links) > MAX_LINKS or any(len(link) != LINK_BYTES for link in wish.links):
        raise MalformedMessage("a prefix with too many links, or with links of another length")
    leads = has_embed(request.span)  # the upstream says nothing: a node may drive a session and compute its first part
    return HopPrefix(prefixes, request, wish, compute, leads=leads, alone=leads and request.downstream is None)
