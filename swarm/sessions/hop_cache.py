"""What a hop does with its session's cache beside computing: sends it on while the session goes on, or takes it in."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence

import anyio

from shoal.compression.kv_levels import CHUNK_TOKENS, KvLevel
from shoal.swarm.errors import BadChunk, Refused, ShoalError
from shoal.swarm.identifiers import SessionId
from shoal.swarm.kv.cache_streams import next_of_cache, open_attached
from shoal.swarm.members.handshake import Gate
from shoal.swarm.transport import Stream, Transport
from shoal.swarm.units import Span

from . import messages
from .compute import Compute
from .messages import CacheEnd, CacheLost, Chunk, Kept, Open, SendCache
from .snapshot_level import SnapshotPace, allowed_levels

FIRST_WORD_S = 2.0  # until the receiver has told of the first chunk


class CacheSender:
    """One cache stream out of a hop. `sent`: positions that have gone out, as so many `bytes`"""

    def __init__(
        self, stream: Stream, compute: Compute, session: SessionId, level: KvLevel, span: Span | None = None
    ) -> None:
        """span: the units whose cache is sent; None: all of the session's"""
        self.sent = self.bytes = 0
        self._span = span
        self._stream = stream
        self._compute = compute
        self._session = session
        self.level = level
        self._pace: SnapshotPace | None = None
        self._heard = anyio.Event()

    @classmethod
    async def open(
        cls, to: SendCache, compute: Compute, session: SessionId, level: KvLevel, transport: Transport, gate: Gate
    ) -> "CacheSender":
        """raises: Unavailable, Refused, RemoteFault"""
        stream = await open_attached(transport, gate, messages.CACHE_PROTOCOL, to.peer, to.addresses, to.session)
        return cls(stream, compute, session, level, to.span)

    async def keep_pace(self, pace: SnapshotPace) -> None:
        """Choose the level of each chunk by what the receiver says has come; runs beside the sending."""
        self._pace = pace
        with contextlib.suppress(ShoalError):  # who sends finds out too
            while (frame := await self._stream.receive()) is not None:
                if isinstance(messages.decode(frame), Kept):
                    pace.came(anyio.current_time())
                    self._heard.set()

    async def send_full_chunks(self, held: Callable[[], int]) -> None:
        """All that are there, one at a time: memory and other sessions wait for no more than one."""
        while (waiting := (held() - self.sent) // CHUNK_TOKENS) > 0:
            if self._pace is None:
                await self.send_to(self.sent + CHUNK_TOKENS)
            else:
                await self._send_in_pace(self._pace, waiting)

    async def _send_in_pace(self, pace: SnapshotPace, waiting: int) -> None:
        self.level = pace.level(waiting)
        before = self.bytes
        await self.send_to(self.sent + CHUNK_TOKENS)
        pace.sent(self.level, self.bytes - before, anyio.current_time())
        with anyio.move_on_after(FIRST_WORD_S):
            await self._heard.wait()  # so that a long prompt does not all go out before the link is known

    async def send_to(self, stop: int) -> None:
        """raises: Unavailable, Refused, LocalFault"""
        while self.sent < stop:
            until = min(stop, self.sent + CHUNK_TOKENS)
            for data in await self._compute.export_kv(self._session, self.sent, until, self.level, self._span):
                await self._stream.send(messages.encode(Chunk(data)))
                self.bytes += len(data)
            self.sent = until

    async def end(self, history: tuple[int, ...]) -> None:
        """raises: Unavailable"""
        await self._stream.send(messages.encode(CacheEnd(self.sent, history)))
        await self._stream.close()

    def abort(self) -> None:
        self._stream.abort()


class HopCache:
    """held: positions that the hop has; tell: the driver"""

    def __init__(
        self,
        request: Open,
        compute: Compute,
        transport: Transport,
        gate: Gate,
        held: Callable[[], int],
        tell: Callable[[messages.AnyMessage], Awaitable[None]],
    ) -> None:
        self._request = request
        self._compute = compute
        self._transport = transport
        self._gate = gate
        self._held = held
        self._tell = tell
        self._grown = anyio.Event()
        self._pace: SnapshotPace | None = None
        self._awaited: set[int] = set()  # where a prompt ends, within a chunk
        self._following = anyio.CancelScope()

    def grew(self, before: int, after: int) -> None:
        """Wake the senders when a chunk has filled."""
        if before // CHUNK_TOKENS != after // CHUNK_TOKENS or after in self._awaited:
            self._grown.set()
            self._grown = anyio.Event()
            if self._pace is not None and after - before < CHUNK_TOKENS:
                self._pace.filled(anyio.current_time())

    async def sender(self, to: SendCache) -> CacheSender:
        """raises: Unavailable, Refused, RemoteFault"""
        level = to.level
        if not self._compute.kv_format(to.span or self._request.span).profile:
            level = "lossless"  # nothing else can be coded here
        return await CacheSender.open(to, self._compute, self._request.session, level, self._transport, self._gate)

    async def follow(self, to: SendCache) -> None:
        """Send each chunk as it fills, until the session ends or another receiver is named."""
        self._following.cancel()
        self._following = scope = anyio.CancelScope()
        with scope:
            try:
                sender = await self.sender(to)
                try:
                    await self._send_as_they_fill(sender, allowed_levels(sender.level))
                finally:
                    sender.abort()
            except ShoalError as error:
                await self._tell(cache_lost(to.session, error))

    async def _send_as_they_fill(self, sender: CacheSender, levels: tuple[KvLevel, ...]) -> None:
        """For ever. raises: Unavailable, Refused, LocalFault"""
        error: ShoalError | None = None
        async with anyio.create_task_group() as tasks:
            if len(levels) > 1:
                self._pace = SnapshotPace(levels, self._request.dtype)
                tasks.start_soon(sender.keep_pace, self._pace)
            try:
                while True:
                    grown = self._grown
                    await sender.send_full_chunks(self._held)
                    await grown.wait()
            except ShoalError as caught:  # goes on below, as it is and not in a group
                error = caught
            tasks.cancel_scope.cancel()
        if error is not None:
            raise error

    async def send_part(self, to: SendCache) -> None:
        """To one of several receivers, its own layers, each chunk as it fills, up to `to.until` positions."""
        self._awaited.add(to.until)
        try:
            if to.span is not None:
                await self._compute.prepare_kv(to.span)
            sender = await self.sender(to)
            try:
                while sender.sent < to.until:
                    grown = self._grown
                    if self._held() >= to.until:
                        await sender.send_to(to.until)
                    else:
                        await sender.send_full_chunks(self._held)
                        await grown.wait()
                await anyio.sleep_forever()  # it may be on its way for long; the driver knows when it has come
            finally:
                sender.abort()
        except ShoalError as error:
            await self._tell(cache_lost(to.session, error))

    async def load(self, chunks: Sequence[bytes], held: int = 0) -> int:
        """Take in what was kept here, after the `held` positions that are in. returns: positions held then; a chunk
        that cannot be used ends it"""
        try:
            for data in chunks:
                held = await self._compute.import_kv(self._request.session, held, [data])
        except ShoalError as error:
            await self._tell(cache_lost(self._request.session, error))
        return held

    async def take(self, stream: Stream) -> int:
        """Take in what the other end of a cache stream sends. returns: positions held then

        raises: BadChunk, Refused, Unavailable, LocalFault
        """
        if stream.peer != self._request.cache_from:
            raise Refused("the driver of this session named another sender of its cache")
        session, held = self._request.session, 0
        while True:
            match await next_of_cache(stream):
                case Chunk(data):
                    held = await self._compute.import_kv(session, held, [data])
                case CacheEnd(end, history):
                    if end != held:
                        raise BadChunk(f"a cache of {end} positions of which {held} came")
                    if history:
                        await self._compute.import_kv(session, held, [], history)
                    return held


def cache_lost(session: SessionId, error: Exception) -> CacheLost:
    return CacheLost(session, str(error)[:500])
