"""What the device thread does with sessions and works: check, queue, batch, run, sample.

Nothing here is thread-safe and nothing waits: `Engine` calls it from its device thread only.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from shoal.incentives.fair_queue import FairQueue
from shoal.incentives.lane_shares import has_room
from shoal.swarm.errors import ContextTooLong, LocalFault, OutOfMemory, Refused, ShoalError
from shoal.swarm.identifiers import SessionId
from shoal.swarm.sampling import Sampling, checked
from shoal.swarm.sessions.compute import Choice, Done, Work
from shoal.swarm.sessions.lanes import MEMBER, Claim, Lane
from shoal.swarm.units import Span, describe, has_embed, has_head, layer_range

from .activation_tensors import bytes_of, is_finite, tensor_of
from .attention_plan import Piece
from .engine_session import Job, KvRead, KvRoom, Session, Settle
from .kv_cache import PAGE_TOKENS
from .sampler import Draw, choose
from .scheduler import BATCH_TOKENS, Batch, Waiting, next_batch
from .shard import Shard
from .step_time import LEAST_PROMPT, finished, prefill_ms, step_ms

_SMOOTHING = 0.1  # weight of the newest step in `step_ms`
_STALE_S = 30.0  # an idle shard's step time is measured again after so long


class EngineCore:
    """All sessions of one shard."""

    def __init__(
        self,
        shard: Shard,
        kv_tokens: int,
        wire_dtype: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        clock: Callable[[], float] = time.perf_counter,
        *,
        keeps_lanes: bool = False,
    ) -> None:
        self.shard = shard
        self.cache = shard.new_cache(kv_tokens)
        self.sessions: dict[SessionId, Session] = {}
        self.step_ms = step_ms(shard, self.cache, clock)
        self.prefill_ms = prefill_ms(shard, self.cache, self.step_ms, clock)
        self._measured_s = clock()
        self.tokens_done = 0
        self._layers = shard.manifest.layers
        self._wire_dtype = wire_dtype or shard.dtype
        self._batch_tokens = batch_tokens
        self._clock = clock
        self._jobs: dict[int, tuple[Session, Job]] = {}
        self._keys = 0
        self._turn = 0
        self._queue = FairQueue()
        self.keeps_lanes = keeps_lanes

    @property
    def queue_length(self) -> int:
        return len(self._jobs)

    def open(
        self,
        session: SessionId,
        span: Span,
        max_tokens: int,
        sampling: Sampling,
        history: tuple[int, ...],
        claim: Claim = MEMBER,
    ) -> None:
        """raises: OutOfMemory, ContextTooLong, Refused"""
        self._check_new(session, span, max_tokens)
        self._check_start(sampling, history)
        if not self.has_room(claim.lane, max_tokens):
            raise OutOfMemory(f"no room for {max_tokens} tokens is left to the {claim.lane} lane")
        self._make_room(max_tokens)
        kept = list(history) if sampling.needs_history else []
        self.sessions[session] = Session(span, self.cache.reserve(max_tokens), sampling, kept, claim)

    def stand_by(self, session: SessionId, span: Span, max_tokens: int) -> None:
        """raises: OutOfMemory, ContextTooLong, Refused"""
        self._check_new(session, span, max_tokens)
        self.sessions[session] = Session(span, self.cache.reserve(max_tokens), Sampling(), [], stands_by=True)

    def take_over(
        self,
        session: SessionId,
        span: Span,
        max_tokens: int,
        sampling: Sampling,
        history: tuple[int, ...],
        below: int,
        claim: Claim = MEMBER,
    ) -> int:
        """returns: positions held. raises: OutOfMemory, Refused"""
        found = self._found(session)
        if not found.stands_by or found.span != span or found.room.tokens < max_tokens:
            raise Refused("what stands by here is not what is wanted")
        self._check_start(sampling, history)
        if not self.has_room(claim.lane, max_tokens):
            raise OutOfMemory(f"no room for {max_tokens} tokens is left to the {claim.lane} lane")
        found.room.truncate(max(0, min(found.room.length, below)))
        found.sampling, found.claim, found.stands_by = sampling, claim, False
        found.history = list(history) if sampling.needs_history else []
        return found.room.length

    def _make_room(self, tokens: int) -> None:
        """Those that stand by yield to a session, the oldest first, until it has room in one run of pages."""
        standing = [name for name, session in self.sessions.items() if session.stands_by]
        while standing and tokens <= self.free_tokens and not self.cache.has_run(tokens):
            self.close(standing.pop(0))

    @property
    def busy_sessions(self) -> int:
        """Those that may compute; who stands by does not."""
        return sum(not session.stands_by for session in self.sessions.values())

    @property
    def free_tokens(self) -> int:
        """Room that a session can have."""
        standing = sum(session.room.size_tokens for session in self.sessions.values() if session.stands_by)
        return self.cache.free_tokens + standing

    def _check_new(self, session: SessionId, span: Span, max_tokens: int) -> None:
        """raises: ContextTooLong, Refused"""
        if session in self.sessions:
            raise Refused("a session of this name is open already")
        if not self.shard.span.covers(span):
            raise Refused(f"{describe(span, self._layers)} is not hosted here")
        if max_tokens < 1:
            raise Refused("a session needs room for at least one token")
        if max_tokens > self.shard.manifest.max_context:
            limit = self.shard.manifest.max_context
            raise ContextTooLong(f"{max_tokens} tokens are more than the model's context of {limit}")

    def _check_start(self, sampling: Sampling, history: tuple[int, ...]) -> None:
        """raises: Refused"""
        try:
            checked(sampling)
        except ValueError as error:
            raise Refused(str(error)) from error
        self._check_history(history)

    def remember(self, session: SessionId, history: tuple[int, ...]) -> None:
        """What the head of a session has seen and chosen so far. raises: Refused"""
        found = self._found(session)
        self._check_history(history)
        if found.sampling.needs_history:
            found.history = list(history)

    def _check_history(self, history: tuple[int, ...]) -> None:
        """raises: Refused"""
        if any(not 0 <= token < self.shard.manifest.vocabulary for token in history):
            raise Refused("the history holds a token id outside the vocabulary")

    def has_room(self, lane: Lane, tokens: int, *, empty: bool = False) -> bool:
        """Whether a session's lane has room for it now, or would have it if nobody else were here."""
        held = {True: 0, False: 0}
        for session in () if empty else self.sessions.values():
            if session.stands_by:
                continue
            held[session.claim.lane is Lane.FREE] += session.room.size_tokens
        size_tokens = max(1, -(-tokens // PAGE_TOKENS)) * PAGE_TOKENS
        return not self.keeps_lanes or has_room(lane, size_tokens, held[True], held[False], self.cache.capacity)

    def close(self, session: SessionId) -> None:
        found = self.sessions.pop(session, None)
        if found is None:
            return
        for job in found.jobs:
            self._jobs.pop(job.key, None)
            job.settle(None, Refused("the session was closed"))
        self.cache.release(found.room)

    def read_kv(self, session: SessionId, start: int, stop: int, span: Span | None = None) -> KvRead:
        """A copy of what a session holds of [start, stop), of all its units or of `span`. raises: Refused"""
        found = self._found(session)
        wanted = span or found.span
        if not found.span.covers(wanted):
            raise Refused(f"{describe(wanted, self._layers)} is not what this session is about")
        if not 0 <= start < stop <= found.room.length:
            raise Refused(f"positions {start} to {stop} were asked for, {found.room.length} are held")
        return KvRead(wanted, *self.cache.read(layer_range(wanted, self._layers), found.room, start, stop))

    def kv_room(self, session: SessionId, start: int) -> KvRoom:
        """Where a cache from position `start` on would go. raises: Refused"""
        found = self._found(session)
        if found.jobs or start != found.room.length:
            raise Refused(f"a cache from position {start} on came, {found.expected} are held")
        return KvRoom(found.span, found.room.tokens, *self.cache.width(layer_range(found.span, self._layers)))

    def write_kv(self, session: SessionId, start: int, keys: torch.Tensor, values: torch.Tensor) -> int:
        """(L, T, H, D) for positions from `start` on. returns: positions held then. raises: Refused"""
        self.kv_room(session, start)  # the session may have gone on
        found = self.sessions[session]
        self.cache.write(layer_range(found.span, self._layers), found.room, start, keys, values)
        found.room.length += keys.shape[1]
        return found.room.length

    def kv_shape(self, session: SessionId) -> tuple[Span, tuple[int, int]]:
        """Its span, and heads and width of its caches. raises: Refused"""
        span = self._found(session).span
        return span, self.cache.width(layer_range(span, self._layers))

    def place_kv(self, session: SessionId, start: int, keys: torch.Tensor, values: torch.Tensor, chunk: object) -> None:
        """As `write_kv`, ahead of the time: what is not computed yet of these positions, and it does not count.

        raises: Refused
        """
        found = self._found(session)
        stop = start + keys.shape[1]
        if stop > found.room.tokens:
            raise Refused(f"{stop} positions; {found.room.tokens} were reserved")
        first = max(start, found.expected)
        if first < stop:
            layers = layer_range(found.span, self._layers)
            self.cache.write(layers, found.room, first, keys[:, first - start :], values[:, first - start :])
            found.room.placed[start] = chunk, first

    def take_placed(self, session: SessionId, start: int, first: int, count: int, chunk: object) -> int | None:
        """Let what `place_kv` put at [first, first + count) count, from `start` on, the next that is due.

        returns: positions held then; None when this chunk is not there. raises: Refused
        """
        self.kv_room(session, start)
        room = self.sessions[session].room
        placed, whole_from = room.placed.get(first, (None, 0))
        if placed is not chunk or whole_from > start:
            return None
        room.length = first + count
        return room.length

    def _found(self, name: SessionId) -> Session:
        """raises: Refused"""
        session = self.sessions.get(name)
        if session is None:
            raise Refused("no such session")
        return session

    def submit(self, work: Work, settle: Settle) -> int:
        """Queue a work. returns: its key

        raises: Refused, BadActivation, ContextTooLong
        """
        session = self._found(work.session)
        if session.stands_by:
            raise Refused("this cache stands by and computes nothing")
        if work.count < 1 or work.start != session.expected:
            raise Refused(f"{work.count} positions from {work.start} on; {session.expected} are held")
        if work.start + work.count > session.room.tokens:
            raise Refused(f"{work.start + work.count} positions; {session.room.tokens} were reserved")
        if work.wants_token and not has_head(session.span, self._layers):
            work = replace(work, wants_token=False)  # the wish is for the hop at the end of the chain
        self._keys += 1
        job = Job(self._keys, work, settle, self._input(session, work), self._clock(), self._turn)
        session.jobs.append(job)
        self._jobs[job.key] = (session, job)
        return job.key

    def cancel(self, key: int) -> None:
        """Take a work out of the queue; what was computed of it is forgotten, works queued behind it are refused."""
        session, job = self._jobs.get(key, (None, None))
        if session is None or job is None:
            return
        at = session.jobs.index(job)
        if at == 0:
            session.room.truncate(job.work.start)
        for gone in session.jobs[at:]:
            self._jobs.pop(gone.key, None)
            gone.settle(None, Refused("an earlier work of the session was cancelled"))
        del session.jobs[at:]

    def turn(self) -> bool:
        """Run one batch. returns: whether works are left"""
        waiting = [
            Waiting(
                session.jobs[0].key,
                session.span,
                session.jobs[0].work.count - session.jobs[0].done,
                session.jobs[0].turn,
                self._queue.rank(session.claim),
                session.claim.lane,
            )
            for session in self.sessions.values()
            if session.jobs
        ]
        batch = next_batch(waiting, self._batch_tokens)
        if batch is not None:
            self._turn += 1
            self._charge(batch, waiting)
            self._run(batch)
        return bool(self._jobs)

    def _charge(self, batch: Batch, waiting: list[Waiting]) -> None:
        taken = {take.key: take.count for take in batch.takes}
        positions: Counter[Claim] = Counter()
        left = []
        for work in waiting:
            flow, count = self._jobs[work.key][0].claim, taken.get(work.key, 0)
            positions[flow] += count
            if count < work.left:
                left.append(flow)
        self._queue.served(positions, positions, left)

    def measure_when_idle(self) -> None:
        """A shard that was slow once is not chosen, so nothing but this would show that it is fast again."""
        if self.busy_sessions or self._clock() - self._measured_s < _STALE_S:
            return
        try:
            self.step_ms = step_ms(self.shard, self.cache, self._clock)
            self.prefill_ms = prefill_ms(self.shard, self.cache, self.step_ms, self._clock)
        except OutOfMemory:
            return  # others use the memory now: what is known has to do
        self._measured_s = self._clock()

    def fail_all(self, error: ShoalError) -> None:
        for _, job in list(self._jobs.values()):
            job.settle(None, error)
        self._jobs.clear()
        for session in self.sessions.values():
            session.jobs.clear()

    def _input(self, session: Session, work: Work) -> torch.Tensor:
        shard = self.shard
        if not has_embed(session.span):
            if work.ids:
                raise Refused("ids were sent to a span that takes hidden states")
            return tensor_of(work.hidden, work.count, shard.manifest.hidden, shard.torch_dtype, shard.device)
        if len(work.ids) != work.count or work.hidden:
            raise Refused(f"{len(work.ids)} ids for {work.count} positions")
        for token in work.ids:
            if not 0 <= token < shard.manifest.vocabulary:
                raise Refused(f"token id {token} is outside the vocabulary of {shard.manifest.vocabulary}")
        return torch.tensor(work.ids, dtype=torch.long, device=shard.device)

    def _run(self, batch: Batch) -> None:
        picked = [(*self._jobs[take.key], take.count) for take in batch.takes]
        pieces = tuple(Piece(session.room, session.room.length, count) for session, _, count in picked)
        rows, wanting, at = [], [], 0
        for session, job, count in picked:
            at += count
            if job.work.wants_token and job.done + count == job.work.count:
                rows.append(at - 1)
                wanting.append((session, job))
        began_s = self._clock()
        try:
            inputs = [job.x[job.done : job.done + count] for _, job, count in picked]
            x = inputs[0] if len(inputs) == 1 else torch.cat(inputs)
            plan, residual = self.shard.plan(self.cache, pieces), None
            if any(job.work.wants_residual for _, job, _ in picked) and self._splits(batch.span):
                residual = self.shard.run(Span(batch.span.start, self._layers + 1), x, plan, ())
                out = finished(self.shard.run(Span(self._layers + 1, self._layers + 2), residual, plan, rows))
            else:
                out = finished(self.shard.run(batch.span, x, plan, rows))
            choices = self._choices(batch.span, out, wanting)
        except (MemoryError, torch.OutOfMemoryError):
            self._drop(picked, OutOfMemory("no memory left for the computation of this batch"))
            return
        except Exception as error:  # noqa: BLE001  our own bug: told to those who wait, and the thread goes on
            where = describe(batch.span, self._layers)
            self._drop(picked, LocalFault(f"{where} failed: {type(error).__name__}: {error}"))
            return
        took_s = self._clock() - began_s
        self._count(batch, took_s)
        headless = not has_head(batch.span, self._layers)
        sound = headless and is_finite(out)  # of all at once: one sum instead of one for each session
        at = 0
        for session, job, count in picked:
            part = out[at : at + count] if headless else None
            if residual is not None and job.work.wants_residual:
                job.residuals.append(residual[at : at + count])
            at += count
            choice = choices.get(job.key)
            if part is not None and not sound and not is_finite(part):
                choice = LocalFault(f"{describe(session.span, self._layers)} produced NaN or infinity")
            self._advance(session, job, count, part, choice, began_s, took_s)

    def _splits(self, span: Span) -> bool:
        """Whether something of the span comes before the head."""
        return has_head(span, self._layers) and len(span) > 1

    def _choices(
        self, span: Span, out: torch.Tensor, wanting: list[tuple[Session, Job]]
    ) -> dict[int, Choice | ShoalError]:
        if not has_head(span, self._layers) or not wanting:
            return {}
        draws = [Draw(s.sampling, j.work.start + j.work.count, s.history) for s, j in wanting]
        keys = [job.key for _, job in wanting]
        try:
            return dict(zip(keys, choose(out, draws), strict=True))
        except LocalFault:
            return {key: self._alone(out[row : row + 1], draws[row]) for row, key in enumerate(keys)}

    def _alone(self, logits: torch.Tensor, draw: Draw) -> Choice | ShoalError:
        try:
            return choose(logits, [draw])[0]
        except LocalFault as error:
            return error

    def _advance(
        self,
        session: Session,
        job: Job,
        count: int,
        part: torch.Tensor | None,
        choice: Choice | ShoalError | None,
        began_s: float,
        took_s: float,
    ) -> None:
        if isinstance(choice, ShoalError):
            self._drop([(session, job, count)], choice)
            return
        job.begun_s = began_s if job.begun_s is None else job.begun_s
        job.compute_s += took_s
        job.done += count
        job.turn = self._turn
        session.room.length += count
        if part is not None:
            job.outputs.append(part)
        if job.done < job.work.count:
            return
        session.jobs.pop(0)
        del self._jobs[job.key]
        if choice is not None and session.sampling.needs_history:
            session.history.append(choice.id)
        hidden, residual = (self._bytes(parts) for parts in (job.outputs, job.residuals))
        job.settle(Done(hidden, choice, job.begun_s - job.queued_s, job.compute_s, residual), None)

    def _bytes(self, parts: list[torch.Tensor]) -> bytes:
        if not parts:
            return b""
        return bytes_of(parts[0] if len(parts) == 1 else torch.cat(parts), self._wire_dtype)

    def _drop(self, picked: Iterable[tuple[Session, Job, int]], error: ShoalError) -> None:
        """Fail works; their sessions stand where those works began."""
        for session, job, _ in picked:
            session.room.truncate(job.work.start)
            for gone in session.jobs:
                self._jobs.pop(gone.key, None)
                gone.settle(None, error)
            session.jobs.clear()

    def _count(self, batch: Batch, took_s: float) -> None:
        positions = sum(take.count for take in batch.takes)
        self.tokens_done += positions
        whole_ms = took_s * 1e3 * len(self.shard.span) / len(batch.span)
        if positions >= LEAST_PROMPT + len(batch.takes):
            self.prefill_ms += _SMOOTHING * (whole_ms / positions - self.prefill_ms)
        if all(take.count == 1 for take in batch.takes):
            self.step_ms += _SMOOTHING * (whole_ms - self.step_ms)
            self._measured_s = self._clock()
