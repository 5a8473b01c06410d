"""A node's `Compute`: one shard on one device, its thread, and the numbers for the node's record.

Callers on any event loop wait for futures; everything else happens on the device thread, in `EngineCore`. Only the
step of a session that is alone and short is computed where it is asked for.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import anyio

from shoal.compression.kv_levels import KvLevel
from shoal.compression.kv_profile import KvProfile
from shoal.swarm.errors import BadChunk, LocalFault, OutOfMemory, Refused, ShoalError
from shoal.swarm.identifiers import SessionId
from shoal.swarm.kv.kv_chunks import KvChunk, KvFormat, begins_at, chunk_ranges, due_chunks, parse_chunk
from shoal.swarm.manifest import model_id
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Done, Work
from shoal.swarm.sessions.lanes import MEMBER, Claim, Lane
from shoal.swarm.units import Span, layer_range

from .coding_thread import CodingThread
from .device_thread import DeviceThread, Next, Reply, deliver
from .engine_core import EngineCore
from .kv_coding import KvCoding
from .scheduler import BATCH_TOKENS
from .shard import Shard

R = TypeVar("R")
LINGER_SHARE = 0.25  # of a step
LONGEST_LINGER_S = 0.001
LONGEST_HERE_MS = 3.0  # an event loop may stand still so long
ROOM_WAIT_S = 2.0  # of a newcomer, until it hears that there is no room; those that came before it come in before it
MOST_WAITING = 256


@dataclass(frozen=True, slots=True, eq=False)
class _Open:
    session: SessionId
    span: Span
    max_tokens: int
    sampling: Sampling
    history: tuple[int, ...]
    claim: Claim
    reply: Reply


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    work: Work
    reply: Reply


@dataclass(frozen=True, slots=True, eq=False)
class _Ask:
    """Of the core, something that takes no time."""

    question: Callable[[], object]
    reply: Reply


@dataclass(frozen=True, slots=True)
class _Cancel:
    reply: Reply


@dataclass(frozen=True, slots=True)
class _Close:
    session: SessionId


@dataclass(frozen=True, slots=True)
class _Measure:
    pass


_Command = _Open | _Run | _Ask | _Cancel | _Close | _Measure


class Engine:
    """Serves the units of a shard to many sessions at once. `stop` it before dropping it."""

    def __init__(
        self,
        shard: Shard,
        kv_tokens: int,
        wire_dtype: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        *,
        keeps_lanes: bool = False,
        kv_profile: KvProfile | None = None,
    ) -> None:
        """kv_tokens: room for the sessions' positions
        wire_dtype: of what is sent on, the shard's own by default
        batch_tokens: positions that one batch computes at most, about
        keeps_lanes: some room is left to newcomers
        kv_profile: by which the caches of exactly these weights are compressed

        raises: OutOfMemory when the KV cache does not fit
        """
        self.shard = shard
        self.kv_tokens = kv_tokens
        self._core = EngineCore(shard, kv_tokens, wire_dtype, batch_tokens, keeps_lanes=keeps_lanes)
        self._share = len(shard.span) / (shard.manifest.layers + 2)
        self._model = model_id(shard.manifest)
        self._kv_profile = kv_profile
        self._codings: dict[Span, KvCoding] = {}
        self._coder = CodingThread(f"shoal-{shard.device}-kv")
        self._settled: list[Reply] = []
        self._newcomers: deque[_Open] = deque()  # that wait for room in their lane
        self._keys: dict[Reply, int] = {}
        self._over: LocalFault | None = None
        self._thread: DeviceThread[_Command] = DeviceThread(f"shoal-{shard.device}", self._turn, self._ended)

    @property
    def keeps_lanes(self) -> bool:
        """Whether some room is left to newcomers."""
        return self._core.keeps_lanes

    @keeps_lanes.setter
    def keeps_lanes(self, keeps: bool) -> None:
        self._core.keeps_lanes = keeps

    @property
    def step_ms(self) -> float:
        """Time of one decode step over the whole span, smoothed."""
        return self._core.step_ms

    @property
    def prefill_ms(self) -> float:
        """Time of a position among many of a prompt, over the whole span, smoothed."""
        return self._core.prefill_ms

    @property
    def kv_bytes(self) -> int:
        """Of the cache of one position, over the whole span."""
        return self._core.cache.position_bytes

    @property
    def queue_length(self) -> int:
        """Works that wait or run."""
        return self._core.queue_length

    @property
    def sessions(self) -> int:
        """Those that may compute."""
        return self._core.busy_sessions

    @property
    def free_tokens(self) -> int:
        """Room that a session can have; who only stands by yields it."""
        return self._core.free_tokens

    @property
    def tokens_done(self) -> int:
        """Positions computed since the start."""
        return self._core.tokens_done

    async def open(
        self,
        session: SessionId,
        span: Span,
        max_tokens: int,
        sampling: Sampling,
        history: tuple[int, ...],
        claim: Claim = MEMBER,
    ) -> None:
        """See `Compute.open`. A newcomer waits a while for room, in line.

        raises: OutOfMemory, ContextTooLong, Refused, LocalFault (the engine has stopped)
        """
        self._check_alive()
        reply = Reply()
        self._thread.post(_Open(session, span, max_tokens, sampling, history, claim, reply))
        if self._over:  # it ended between the check and the post
            raise self._over
        patience_s = ROOM_WAIT_S if claim.lane is Lane.FREE else math.inf
        with anyio.move_on_after(patience_s):
            try:
                await reply.wait()
            except BaseException:
                if reply.abandoned:
                    self.close(session)  # nobody will use what may still be opened
                raise
            return
        raise OutOfMemory(f"no room for {max_tokens} tokens was left to the {claim.lane} lane for {patience_s:.0f} s")

    async def run(self, work: Work) -> Done:
        """See `Compute.run`. raises: BadActivation, LocalFault, OutOfMemory, Refused"""
        self._check_alive()
        reply = Reply()
        command = _Run(work, reply)
        if not (self._is_short(work) and self._thread.take_here(command)):
            self._thread.post(command)
        if self._over:
            raise self._over
        try:
            done: Done = await reply.wait()
        except BaseException:
            if reply.abandoned:
                self._thread.post(_Cancel(reply))
            raise
        return done

    async def stand_by(self, session: SessionId, span: Span, max_tokens: int) -> None:
        """See `Compute.stand_by`. raises: OutOfMemory, ContextTooLong, Refused, LocalFault"""
        await self._ask(partial(self._core.stand_by, session, span, max_tokens))

    async def take_over(
        self,
        session: SessionId,
        span: Span,
        max_tokens: int,
        sampling: Sampling,
        history: tuple[int, ...],
        below: int,
        claim: Claim = MEMBER,
    ) -> int:
        """See `Compute.take_over`. raises: Refused, OutOfMemory, LocalFault"""
        named = session, span, max_tokens, sampling, history, below, claim
        return await self._ask(partial(self._core.take_over, *named))

    def kv_format(self, span: Span) -> KvFormat:
        return self._coding(span).kind

    async def prepare_kv(self, span: Span) -> None:
        """See `Compute.prepare_kv`. raises: Refused, LocalFault"""
        coding = self._coding(span)
        if not coding.is_warm:
            shape = await self._ask(partial(self._core.cache.width, range(*coding.kind.layers)))
            await self._coder.run(partial(coding.warm_up, *shape))

    async def export_kv(
        self, session: SessionId, start: int, stop: int, level: KvLevel = "lossless", span: Span | None = None
    ) -> list[bytes]:
        """See `Compute.export_kv`. raises: Refused, LocalFault"""
        if not 0 <= start < stop:
            raise Refused(f"positions {start} to {stop} are none")
        chunks = []
        for first, last in chunk_ranges(start, stop):
            read = await self._ask(partial(self._core.read_kv, session, first, last, span))
            coding = self._coding(read.span)
            coding.check_level(level)
            chunks.append(await self._coder.run(partial(coding.encode, first, read.keys, read.values, level)))
        return chunks

    async def import_kv(
        self, session: SessionId, start: int, chunks: Sequence[bytes], history: tuple[int, ...] = ()
    ) -> int:
        """See `Compute.import_kv`. raises: BadChunk, Refused, LocalFault"""
        room = await self._ask(partial(self._core.kv_room, session, start))
        coding, held = self._coding(room.span), start
        due = due_chunks(chunks, coding.kind, begins_at(chunks[0], start) if chunks else start)
        for data, chunk in zip(chunks, due, strict=True):
            if chunk.start + chunk.count > room.tokens:
                raise Refused(f"{chunk.start + chunk.count} positions; {room.tokens} were reserved")
            placed = await self._ask(partial(self._core.take_placed, session, held, chunk.start, chunk.count, data))
            if placed is not None:
                held = placed
                continue
            keys, values = await self._coder.run(partial(coding.decode, chunk, room.heads, room.width))
            known = held - chunk.start
            held = await self._ask(partial(self._core.write_kv, session, held, keys[:, known:], values[:, known:]))
        if history:
            await self._ask(partial(self._core.remember, session, history))
        return held

    async def place_kv(self, session: SessionId, chunk: bytes) -> None:
        """See `Compute.place_kv`. raises: BadChunk, Refused, LocalFault"""
        span, (heads, width) = await self._ask(partial(self._core.kv_shape, session))
        coding = self._coding(span)
        (parsed,) = due_chunks([chunk], coding.kind, parse_chunk(chunk).start)
        keys, values = await self._coder.run(partial(coding.decode, parsed, heads, width))
        await self._ask(partial(self._core.place_kv, session, parsed.start, keys, values, chunk))

    async def recode_kv(self, chunk: bytes, level: KvLevel) -> bytes:
        """See `Compute.recode_kv`. raises: BadChunk, Refused, LocalFault"""
        coding, parsed, heads, width = await self._known_kind(chunk)
        coding.check_level(level)

        def recode() -> bytes:
            return coding.encode(parsed.start, *coding.decode(parsed, heads, width), level)

        return await self._coder.run(recode)

    async def kv_distance(self, mine: bytes, other: bytes, level: KvLevel) -> float:
        """See `Compute.kv_distance`. raises: BadChunk, Refused, LocalFault"""
        coding, parsed, heads, width = await self._known_kind(mine)
        coding.check_level(level)
        (theirs,) = due_chunks([other], coding.kind, parsed.start)
        if theirs.count != parsed.count:
            raise BadChunk(f"a chunk of {theirs.count} positions where {parsed.count} are due")

        return await self._coder.run(partial(coding.distance, parsed, theirs, heads, width, level))

    async def _known_kind(self, data: bytes) -> tuple[KvCoding, KvChunk, int, int]:
        """A chunk with what codes it here, heads and width. raises: BadChunk, Refused"""
        parsed = parse_chunk(data)
        first, stop = parsed.format.layers
        if not 0 <= first <= stop <= self.shard.manifest.layers:
            raise BadChunk(f"a chunk of layers {first}:{stop}")
        span = Span(0, 1) if not stop else Span(first + 1, max(stop, first + 1) + 1)
        coding = self._coding(span)
        (checked,) = due_chunks([data], coding.kind, parsed.start)
        heads, width = await self._ask(partial(self._core.cache.width, range(first, stop)))
        return coding, checked, heads, width

    def _coding(self, span: Span) -> KvCoding:
        """Of caches of sessions over a span."""
        coding = self._codings.get(span)
        if coding is None:
            layers, profile = layer_range(span, self.shard.manifest.layers), self._kv_profile
            digest = profile.digest if profile is not None else b""
            kind = KvFormat(self._model, self.shard.dtype, (layers.start, layers.stop), digest)
            coding = self._codings[span] = KvCoding(kind, profile)
        return coding

    async def _ask(self, question: Callable[[], R]) -> R:
        self._check_alive()
        reply = Reply()
        self._thread.post(_Ask(question, reply))
        if self._over:
            raise self._over
        answer: R = await reply.wait()
        return answer

    def close(self, session: SessionId) -> None:
        self._thread.post(_Close(session))

    def measure_when_idle(self) -> None:
        """Ask for a fresh `step_ms` if no session is open and the last one is old."""
        self._thread.post(_Measure())

    def stop(self, timeout_s: float = 10.0) -> None:
        """Let the running batch finish and fail whatever waits; again does no harm."""
        self._coder.stop(timeout_s)
        self._thread.stop(timeout_s)

    def _is_short(self, work: Work) -> bool:
        """One step of the only session: there is nobody to batch it with, and it leaves nothing to do."""
        alone = work.count == 1 and self.sessions == 1 and self.queue_length == 0
        return alone and self.step_ms < LONGEST_HERE_MS and self.shard.device.type == "cpu"

    def _check_alive(self) -> None:
        if self._over:
            raise self._over

    def _turn(self, commands: list[_Command]) -> Next:
        """On the device thread."""
        for command in commands:
            self._obey(command)
        self._let_in()
        self._flush()
        busy = self._core.turn()
        self._flush()
        # Steps of sessions that ran together elsewhere come in a burst. A batch of eight costs less than two alone,
        # so a short wait for the rest of the burst pays; without it sessions drift apart and stay so. But while all
        # are here the rest of the chain stands idle: a burst is this shard's share of them.
        burst = math.ceil(self.sessions * self._share)
        if busy or burst <= 1:
            return Next(busy)
        return Next(busy, burst, min(LONGEST_LINGER_S, LINGER_SHARE * self.step_ms / 1e3))

    def _obey(self, command: _Command) -> None:
        match command:
            case _Open():
                if self._must_wait(command):
                    self._newcomers.append(command)
                else:
                    self._open(command)
            case _Run(work, reply):
                if not reply.abandoned:
                    self._submit(work, reply)
            case _Ask(question, reply):
                if not reply.abandoned:
                    self._answer(reply, question)
            case _Cancel(reply):
                if reply in self._keys:
                    self._core.cancel(self._keys[reply])
            case _Close(session):
                self._core.close(session)
            case _Measure():
                self._core.measure_when_idle()

    def _open(self, command: _Open) -> None:
        named = command.session, command.span, command.max_tokens, command.sampling, command.history, command.claim
        self._answer(command.reply, lambda: self._core.open(*named))

    def _must_wait(self, command: _Open) -> bool:
        lane, tokens = command.claim.lane, command.max_tokens
        if lane is not Lane.FREE or len(self._newcomers) >= MOST_WAITING:
            return False
        fits = self._core.has_room(lane, tokens, empty=True)
        return fits and (bool(self._newcomers) or not self._core.has_room(lane, tokens))

    def _let_in(self) -> None:
        """Newcomers for whom there is room now, the first that came first."""
        while self._newcomers:
            first = self._newcomers[0]
            if not first.reply.abandoned:
                if not self._core.has_room(Lane.FREE, first.max_tokens):
                    return
                self._open(first)
            self._newcomers.popleft()

    def _submit(self, work: Work, reply: Reply) -> None:
        def settle(done: Done | None, error: ShoalError | None) -> None:
            self._keys.pop(reply, None)
            self._settled.append(reply.settle(done, error))

        try:
            self._keys[reply] = self._core.submit(work, settle)
        except ShoalError as error:
            self._settled.append(reply.settle(error=error))
        except Exception as error:  # noqa: BLE001  a bug of ours in one work must not end the thread for the others
            self._settled.append(reply.settle(error=LocalFault(f"{type(error).__name__}: {error}")))

    def _answer(self, reply: Reply, action: Callable[[], object]) -> None:
        try:
            self._settled.append(reply.settle(action()))
        except ShoalError as error:
            self._settled.append(reply.settle(error=error))
        except Exception as error:  # noqa: BLE001  as in _submit
            self._settled.append(reply.settle(error=LocalFault(f"{type(error).__name__}: {error}")))

    def _flush(self) -> None:
        if self._settled:
            deliver(self._settled)
            self._settled = []

    def _ended(self, error: BaseException | None) -> None:
        reason = (
            "the engine was stopped" if error is None else f"the device thread died: {type(error).__name__}: {error}"
        )
        self._over = LocalFault(reason)  # first: whoever posts from here on sees it
        self._core.fail_all(self._over)
        for command in (*self._newcomers, *self._thread.leftovers()):
            if isinstance(command, (_Open, _Run, _Ask)):
                self._settled.append(command.reply.settle(error=self._over))
        self._flush()
