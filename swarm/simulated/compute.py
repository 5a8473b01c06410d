"""A `Compute` without tensors, for sessions in virtual time: it checks what an engine checks, and fails on demand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import anyio
from anyio.lowlevel import checkpoint
from msgspec.structs import replace

from shoal.compression import activations
from shoal.compression.errors import MalformedPayload
from shoal.compression.kv_levels import KvLevel
from shoal.swarm.errors import BadActivation, BadChunk, ContextTooLong, LocalFault, OutOfMemory, Refused
from shoal.swarm.identifiers import SessionId
from shoal.swarm.kv.kv_chunks import KvChunk, KvFormat, begins_at, chunk_ranges, due_chunks, pack_chunk, parse_chunk
from shoal.swarm.manifest import model_id
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Done, Work
from shoal.swarm.sessions.lanes import MEMBER, Claim
from shoal.swarm.units import Span, describe, layer_range

from .model import WIDTH, SimulatedModel, pack_hidden, unpack_hidden

Fault = Literal[
    "answer_nan",  # hidden states with NaN in them: the next hop must notice
    "wrong_shape",  # one position too many
    "wrong_values",  # a lie that no shape betrays
    "never_answer",  # work is taken and nothing comes back
    "refuse_open",
    "refuse_work",
    "break_down",  # LocalFault
    "refuse_export",
    "refuse_import",
]


@dataclass(slots=True)
class OpenSession:
    span: Span
    max_tokens: int
    sampling: Sampling
    held: int = 0  # positions
    digests: dict[int, bytes] = field(default_factory=dict)
    cache: list[bytes] = field(default_factory=list)  # of each position, the digests of all layers
    placed: dict[int, bytes] = field(default_factory=dict)  # chunks that need no time to be taken in


class SimulatedCompute:
    """Holds spans of one model and at most `room_tokens` positions for all its sessions.

    One step takes `step_s` for its batch and `position_s` for each position, per unit of the session's span; so does
    moving a chunk, unless `moved_position_s` says otherwise. profile: what lossy chunks are coded by; they are exact
    here all the same.
    """

    def __init__(
        self,
        model: SimulatedModel,
        hosted: tuple[Span, ...],
        room_tokens: int = 1 << 20,
        step_s: float = 0.0005,
        position_s: float = 0.00002,
        profile: bytes = b"",
        moved_position_s: float | None = None,
    ) -> None:
        self.model = model
        self.hosted = hosted
        self.room_tokens = room_tokens
        self.step_s = step_s
        self.position_s = position_s
        self.sessions: dict[SessionId, OpenSession] = {}
        self.standing: dict[SessionId, OpenSession] = {}  # yield their room to sessions, the oldest first
        self.profile = profile
        self._moved_position_s = position_s if moved_position_s is None else moved_position_s
        self.computed_positions = 0
        self.imported_positions = 0
        self._fault: Fault | None = None
        self._fault_after = 0  # works that still go well

    @property
    def free_tokens(self) -> int:
        return self.room_tokens - sum(session.max_tokens for session in self.sessions.values())

    def fail(self, fault: Fault, after: int = 0) -> None:
        """From the (after + 1)-th work on; `refuse_open` at once."""
        self._fault, self._fault_after = fault, after

    def recover(self) -> None:
        self._fault = None

    async def open(
        self,
        session: SessionId,
        span: Span,
        max_tokens: int,
        sampling: Sampling,
        history: tuple[int, ...],
        claim: Claim = MEMBER,
    ) -> None:
        await checkpoint()
        if self._fault == "refuse_open":
            raise Refused("this node takes no sessions")
        self._check_new(session, span, max_tokens)
        if max_tokens > self.free_tokens:
            raise OutOfMemory(f"room for {max_tokens} tokens was asked for, {self.free_tokens} are free")
        while self.standing and max_tokens > self._unused_tokens:
            del self.standing[next(iter(self.standing))]
        self.sessions[session] = OpenSession(span, max_tokens, sampling)

    async def stand_by(self, session: SessionId, span: Span, max_tokens: int) -> None:
        await checkpoint()
        self._check_new(session, span, max_tokens)
        if max_tokens > self._unused_tokens:
            raise OutOfMemory(f"room for {max_tokens} tokens was asked for, {self._unused_tokens} are unused")
        self.standing[session] = OpenSession(span, max_tokens, Sampling())

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
        await checkpoint()
        held = self.standing.get(session)
        if held is None or held.span != span or held.max_tokens < max_tokens:
            raise Refused("nothing of this name stands by")
        units = self.model.kept_units(span)
        held.held = max(0, min(held.held, below))
        del held.cache[held.held :]
        last = held.cache[-1] if held.cache else b""
        held.digests = {unit: last[at * WIDTH : (at + 1) * WIDTH] for at, unit in enumerate(units)} if last else {}
        held.sampling = sampling
        self.sessions[session] = self.standing.pop(session)
        self.imported_positions += held.held
        return held.held

    @property
    def _unused_tokens(self) -> int:
        return self.free_tokens - sum(held.max_tokens for held in self.standing.values())

    def _check_new(self, session: SessionId, span: Span, max_tokens: int) -> None:
        """raises: Refused, ContextTooLong"""
        if not any(hosted.covers(span) for hosted in self.hosted):
            raise Refused(f"{describe(span, self.model.layers)} is not hosted here")
        if session in self.sessions or session in self.standing:
            raise Refused("a session of this name is open already")
        if max_tokens > self.model.max_context:
            raise ContextTooLong(f"{max_tokens} tokens are more than the context of {self.model.max_context}")

    async def run(self, work: Work) -> Done:
        session = self._continued(work)
        fault = self._due_fault()
        if fault == "refuse_work":
            raise Refused("this node does no work")
        if fault == "break_down":
            raise LocalFault("the device is broken")
        if fault == "never_answer":
            await anyio.sleep_forever()
        values = self._inputs(work, session.span)
        compute_s = len(session.span) * (self.step_s + work.count * self.position_s)
        await anyio.sleep(compute_s)
        if self._continued(work) is not session:
            raise Refused("the session was closed meanwhile")
        outputs = []
        for value in values:
            outputs.append(self.model.step(session.span, session.digests, value))
            kept = (session.digests[unit] for unit in self.model.kept_units(session.span))
            session.cache.append(b"".join(kept))
        session.held += work.count
        self.computed_positions += work.count
        if fault == "wrong_values":
            outputs = [bytes(255 - byte for byte in value) for value in outputs]
        if not self.model.ends_with_tokens(session.span):
            return Done(_disfigured(pack_hidden(outputs), work.count, fault), None, 0.0, compute_s)
        choice = self.model.choose(outputs[-1], session.held, session.sampling) if work.wants_token else None
        return Done(b"", choice, 0.0, compute_s)

    def kv_format(self, span: Span) -> KvFormat:
        layers = layer_range(span, self.model.layers)
        return KvFormat(model_id(self.model.manifest()), "float32", (layers.start, layers.stop), self.profile)

    async def prepare_kv(self, span: Span) -> None:
        await checkpoint()

    async def export_kv(
        self, session: SessionId, start: int, stop: int, level: KvLevel = "lossless", span: Span | None = None
    ) -> list[bytes]:
        held = self._known(session)
        if self._fault == "refuse_export":
            raise Refused("this node gives no caches away")
        if not 0 <= start < stop <= held.held:
            raise Refused(f"positions {start} to {stop} were asked for, {held.held} are held")
        if level != "lossless" and not self.profile:
            raise Refused(f"there is no profile here for {level} chunks")
        wanted = span or held.span
        if not held.span.covers(wanted):
            raise Refused(f"{describe(wanted, self.model.layers)} is not what this session is about")
        first_unit, units = self.model.kept_units(held.span).start, self.model.kept_units(wanted)
        part = slice((units.start - first_unit) * WIDTH, (units.stop - first_unit) * WIDTH)
        mine = self.kv_format(wanted)
        made = mine if level != "lossless" else KvFormat(mine.model, mine.dtype, mine.layers)
        chunks = []
        for first, last in chunk_ranges(start, stop):
            await self._pass_time(wanted, last - first)
            payload = b"".join(row[part] for row in held.cache[first:last])
            chunks.append(pack_chunk(KvChunk(made, first, last - first, payload)))
        return chunks

    async def import_kv(
        self, session: SessionId, start: int, chunks: Sequence[bytes], history: tuple[int, ...] = ()
    ) -> int:
        held = self._taking_in(session)
        if self._fault == "refuse_import":
            raise Refused("this node takes no caches in")
        if start != held.held:
            raise Refused(f"a cache from position {start} on came, {held.held} are held")
        units = self.model.kept_units(held.span)
        due_from = begins_at(chunks[0], start) if chunks else start
        for chunk in due_chunks(chunks, self.kv_format(held.span), due_from):
            if chunk.start + chunk.count > held.max_tokens:
                raise Refused(f"{chunk.start + chunk.count} positions; {held.max_tokens} are reserved")
            width = WIDTH * len(units)
            if len(chunk.payload) != width * chunk.count:
                raise BadChunk(f"a payload of {len(chunk.payload)} bytes for {chunk.count} positions")
            if held.placed.get(chunk.start) not in chunks:
                await self._pass_time(held.span, chunk.count)
            if self._taking_in(session) is not held or not chunk.start <= held.held < chunk.start + chunk.count:
                raise Refused("the session was closed or went on meanwhile")
            rows = [chunk.payload[at * width : (at + 1) * width] for at in range(chunk.count)]
            known = held.held - chunk.start
            held.cache += rows[known:]
            held.digests = {unit: rows[-1][at * WIDTH : (at + 1) * WIDTH] for at, unit in enumerate(units)}
            held.held += chunk.count - known
            if session in self.sessions:
                self.imported_positions += chunk.count - known
        return held.held

    async def place_kv(self, session: SessionId, chunk: bytes) -> None:
        held = self._known(session)
        (parsed,) = due_chunks([chunk], self.kv_format(held.span), parse_chunk(chunk).start)
        if len(parsed.payload) != WIDTH * len(self.model.kept_units(held.span)) * parsed.count:
            raise BadChunk(f"a payload of {len(parsed.payload)} bytes for {parsed.count} positions")
        if parsed.start + parsed.count > held.max_tokens:
            raise Refused(f"{parsed.start + parsed.count} positions; {held.max_tokens} are reserved")
        await self._pass_time(held.span, parsed.count)
        held.placed[parsed.start] = chunk

    async def recode_kv(self, chunk: bytes, level: KvLevel) -> bytes:
        parsed = parse_chunk(chunk)
        if level != "lossless" and not self.profile:
            raise Refused(f"there is no profile here for {level} chunks")
        await checkpoint()
        profile = self.profile if level != "lossless" else b""
        return pack_chunk(replace(parsed, format=replace(parsed.format, profile=profile)))

    async def kv_distance(self, mine: bytes, other: bytes, level: KvLevel) -> float:
        if level != "lossless" and not self.profile:
            raise Refused(f"there is no profile here for {level} chunks")
        own = parse_chunk(mine)
        first, stop = own.format.layers
        (theirs,) = due_chunks([other], self.kv_format(Span(first + 1, stop + 1)), own.start)
        await checkpoint()
        return sum(a != b for a, b in zip(own.payload, theirs.payload, strict=False)) / max(1, len(own.payload))

    async def _pass_time(self, span: Span, count: int) -> None:
        await anyio.sleep(len(span) * (self.step_s + count * self._moved_position_s))

    def close(self, session: SessionId) -> None:
        self.sessions.pop(session, None)
        self.standing.pop(session, None)

    def _continued(self, work: Work) -> OpenSession:
        """raises: Refused"""
        session = self._known(work.session)
        if work.start != session.held:
            raise Refused(f"positions from {work.start} came, {session.held} are held")
        if work.count < 1 or work.start + work.count > session.max_tokens:
            raise Refused(f"{work.count} positions from {work.start} on; {session.max_tokens} are reserved")
        return session

    def _known(self, name: SessionId) -> OpenSession:
        """raises: Refused"""
        session = self.sessions.get(name)
        if session is None:
            raise Refused("no such session")
        return session

    def _taking_in(self, name: SessionId) -> OpenSession:
        """raises: Refused"""
        return self.standing.get(name) or self._known(name)

    def _inputs(self, work: Work, span: Span) -> list[bytes]:
        """raises: BadActivation"""
        if self.model.begins_with_ids(span):
            if len(work.ids) != work.count or work.hidden:
                raise BadActivation(f"{len(work.ids)} ids for {work.count} positions")
            if not 0 <= min(work.ids) <= max(work.ids) < self.model.vocabulary:
                raise BadActivation("a token id lies outside the vocabulary")
            return [token.to_bytes(WIDTH) for token in work.ids]
        try:
            return unpack_hidden(work.hidden, work.count)
        except (MalformedPayload, ValueError) as error:
            raise BadActivation(str(error)) from error

    def _due_fault(self) -> Fault | None:
        if self._fault is None or self._fault in {"refuse_open", "refuse_export", "refuse_import"}:
            return None
        if self._fault_after > 0:
            self._fault_after -= 1
            return None
        return self._fault


def _disfigured(hidden: bytes, count: int, fault: Fault | None) -> bytes:
    if fault == "answer_nan":
        nan = b"\x00\x00\xc0\x7f"  # float32, little endian
        return activations.pack("float32", count, WIDTH, nan * (count * WIDTH))
    if fault == "wrong_shape":
        return activations.pack("float32", count + 1, WIDTH, bytes(4 * (count + 1) * WIDTH))
    return hidden
