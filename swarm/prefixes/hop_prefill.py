"""The prompt of one session at one hop, while another peer computes it: what has come, what is taken in.

The chunks of this hop's layers come on a cache stream, from the front on. The driver hears of each and tells the first
hop how far all others are; the first hop decides what is skipped (`prefill_race`), and those behind it see a gap in
what comes and fill it from what has come, as with a prefix that is used again.
"""

import random
from collections import deque
from collections.abc import Awaitable, Callable

import anyio
import structlog

from shoal.compression.kv_levels import CHUNK_TOKENS, KvLevel
from shoal.swarm.errors import BadChunk, RemoteFault, ShoalError
from shoal.swarm.kv.cache_streams import next_of_cache
from shoal.swarm.kv.kv_chunks import KvChunk, KvFormat, due_chunks, pack_chunk
from shoal.swarm.routing.link_speed import LinkSpeed
from shoal.swarm.sessions.compute import ChunkCoder, Compute
from shoal.swarm.sessions.messages import Ahead, Chunk, NoPrefill, Open, Prefill, Reused, Streamed
from shoal.swarm.transport import Stream
from shoal.swarm.units import has_embed

from .prefill_race import PrefillRace
from .prefix_race import Step, Wait
from .prefixes import AUDIT_SHARE, may_differ

log = structlog.get_logger()

STAGED_BYTES = 64 << 20  # that wait to be taken in; the sender waits meanwhile
SENDER_S = 60.0  # a sender that says nothing for so long is left

Tell = Callable[[Streamed | Reused], Awaitable[None]]


class HopPrefill:
    """leads: this hop is fed by the driver and decides; alone: there is no other in the chain; coder: compares chunks;
    link: hears how fast they come

    raises: RemoteFault when what the driver asks for cannot be
    """

    counts_as_work = False  # what is taken in was paid to who computed it

    def __init__(
        self,
        request: Open,
        wish: Prefill,
        compute: Compute,
        coder: ChunkCoder | None,
        clock: Callable[[], float] = anyio.current_time,
        audit_share: float = AUDIT_SHARE,
        draw: Callable[[], float] | None = None,
        link: LinkSpeed | None = None,
    ) -> None:
        if not 0 < wish.positions < request.max_tokens:
            raise RemoteFault(f"a prefill of {wish.positions} positions in a session of {request.max_tokens}")
        self.leads = has_embed(request.span)
        self._alone = self.leads and request.downstream is None
        self._request = request
        self._wish = wish
        self._compute = compute
        self._coder = coder
        self._clock = clock
        self._kind = compute.kv_format(request.span)
        self._waiting: deque[tuple[KvChunk, bytes]] = deque()  # not taken in yet
        self._waiting_bytes = 0
        self._came = 0  # positions
        self._others = 0  # positions that have come to all other hops
        self._held = 0  # positions
        self._taken = 0  # positions that were taken in
        self._audited = False  # a chunk that was computed although it had come was compared
        self._news = anyio.Event()
        self._room = anyio.Event()
        self._stream_open = self._over = self._false = False
        self._flow = link.flow() if link is not None else None
        draw = draw or random.Random().random
        whole_chunks = wish.positions // CHUNK_TOKENS
        audited = int(draw() * whole_chunks) if whole_chunks and coder is not None and draw() < audit_share else None
        self._race = PrefillRace(
            wish.positions, clock(), wish.first_s, wish.chunk_s, wish.own_chunk_s, audited if self.leads else None
        )
        self._tell: Tell | None = None

    def _come_by_itself(self) -> None:
        """A hop without layers has an empty cache, which nobody needs to send."""
        kind = KvFormat(self._kind.model, self._kind.dtype, self._kind.layers)
        while self._came < self._wish.positions:
            count = min(CHUNK_TOKENS, self._wish.positions - self._came)
            chunk = KvChunk(kind, self._came, count, b"")
            self._keep(chunk, pack_chunk(chunk))
        self._over = True

    # What comes

    async def run(self, tell: Tell) -> None:
        """Once the engine has room for the session: until then nobody has looked at how long it wants to be."""
        self._tell = tell
        if self._kind.layers[0] == self._kind.layers[1]:
            self._come_by_itself()
            self._note()
            await self._say()

    async def _say(self, fault: str = "") -> None:
        if self._tell is not None:
            await self._tell(Streamed(self._came, self._over, fault[:500]))

    def _note(self) -> None:
        self._race.came(self._came if self._alone else min(self._came, self._others), self._clock())
        if self._over and self._came < self._wish.positions:
            self._race.end()
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def hear(self, said: Ahead | NoPrefill) -> None:
        """Of the driver."""
        if isinstance(said, Ahead):
            self._others = max(self._others, said.held)  # news may overtake each other
        else:
            self._over = True
        self._note()
        if isinstance(said, NoPrefill) or said.over:
            self._race.end()
            self._wake()

    async def take(self, stream: Stream) -> None:
        """Until all has come, or the other end is gone. raises: RemoteFault for a sender that was not named"""
        if stream.peer != self._wish.sender or self._stream_open:
            raise RemoteFault("the driver of this session named another sender, or one stream of it")
        self._stream_open = True
        try:
            while self._came < self._wish.positions and not self._over:
                await self._make_room()
                with anyio.fail_after(SENDER_S):
                    message = await next_of_cache(stream)
                if not isinstance(message, Chunk):
                    raise BadChunk("it says that the prompt ends here")
                if self._flow is not None:
                    self._flow.came(len(message.data))
                await self._stage(message.data)
        except RemoteFault as error:
            await self._distrust(str(error))
        except (ShoalError, TimeoutError) as error:
            log.info("prefiller_left", peer=self._wish.sender, reason=str(error))
        finally:
            self._over = True
            self._note()
        await self._say()

    async def _make_room(self) -> None:
        while self._waiting_bytes >= STAGED_BYTES and not self._over:
            await self._room.wait()

    async def _stage(self, data: bytes) -> None:
        (chunk,) = due_chunks([data], self._kind, self._came)
        if chunk.count != min(CHUNK_TOKENS, self._wish.positions - self._came):
            raise BadChunk(f"a chunk of {chunk.count} positions from {chunk.start} on")
        if self._wish.exact and chunk.format.profile:
            raise BadChunk("a chunk that has lost something, for a session that allows no loss")
        self._keep(chunk, data)
        self._note()
        await self._say()

    def _keep(self, chunk: KvChunk, data: bytes) -> None:
        self._came += chunk.count
        if self._came > self._held:
            self._waiting.append((chunk, data))
            self._waiting_bytes += len(data)

    async def _distrust(self, reason: str) -> None:
        """Nothing that came is used from here on; with what is in use the driver has to begin anew."""
        log.warning("false_prefill", peer=self._wish.sender, reason=reason)
        self._false = True
        self._forget()
        await self._say(reason)

    def _drop(self, stop: int) -> None:
        """What lies before a position."""
        while self._waiting and self._waiting[0][0].start + self._waiting[0][0].count <= stop:
            _, data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
        self._room.set()
        self._room = anyio.Event()

    # Feeding

    async def next(self, position: int, count: int) -> Step:
        """What the first hop does with `count` positions at hand; it waits here where that pays."""
        while True:
            now, news = self._clock(), self._news
            step = self._race.next(position, count, now)
            if not isinstance(step, Wait):
                return step
            with anyio.move_on_after(step.until_s - now):
                await news.wait()

    async def fill(self, start: int, stop: int) -> int:
        """Take in what has come of [start, stop). returns: where that ends, `stop` unless a chunk is false or missing

        raises: Refused, LocalFault
        """
        position = start
        while position < stop and self._waiting:
            self._drop(position)
            if not self._waiting or self._waiting[0][0].start > position:
                break
            try:
                position = await self._compute.import_kv(self._request.session, position, [self._waiting[0][1]])
            except BadChunk as error:
                await self._distrust(str(error))
                break
        self._taken += position - start
        self._held = position
        self._drop(position)
        if self._tell is not None and position > start:
            await self._tell(Reused(0, position - start))
        return position

    async def give_up(self, error: ShoalError) -> None:
        """What has come cannot be taken in here."""
        log.warning("prefill_not_taken_in", reason=str(error))
        self._forget()
        await self._say()

    def _forget(self) -> None:
        self._over = True
        self._came = self._held
        self._drop(self._wish.positions)
        self._race.forget()
        self._wake()

    async def computed(self, start: int, count: int, took_s: float, *, wants_token: bool) -> bool:
        """Positions were computed. returns: whether what was taken in before may be believed"""
        claimed = next((data for chunk, data in self._waiting if (chunk.start, chunk.count) == (start, count)), None)
        self._held = start + count
        self._drop(self._held)
        if claimed is None or self._coder is None or self._audited or self._false:
            return True
        self._audited = True
        level: KvLevel = "lossless" if self._wish.exact else "default"
        try:
            (own,) = await self._compute.export_kv(self._request.session, start, start + count)
            distance = await self._coder.kv_distance(own, claimed, level)
        except BadChunk as error:
            await self._distrust(str(error))
            return not self._taken
        except ShoalError as error:  # these layers are being let go: nothing is known then
            log.info("prefill_not_audited", reason=str(error))
            return True
        if distance <= may_differ(level):
            return True
        await self._distrust(f"positions {start} to {start + count} are {distance:.3f} from what was computed")
        return not self._taken

    async def settle(self) -> None:
        return

    def close(self) -> None:
        self._over = True
        self._waiting.clear()
        self._room.set()
        self._news.set()
