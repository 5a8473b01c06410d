"""The shell around `session.Session`: opens streams, feeds tokens, keeps time, and hands tokens to the caller."""

import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from shoal.swarm.errors import ContextTooLong, ShoalError, UsageError
from shoal.swarm.identifiers import ModelId, SessionId
from shoal.swarm.kv.cache_keeper import CacheKeeper
from shoal.swarm.kv.cache_streams import CacheReceiver
from shoal.swarm.manifest import Manifest
from shoal.swarm.members.handshake import Gate
from shoal.swarm.routing.chain_plan import ChainPlanner
from shoal.swarm.transport import Transport
from shoal.swarm.units import Span, whole

from .compute import Compute
from .feeder import Feeder, IdFeeder, LocalFeeder
from .generation import EXACTNESSES, ServedModel, TokenRequest, checked_session
from .hop_server import KEEP_BYTES
from .lanes import Stamping
from .local_head import LocalHead
from .metering import Paying, Payment
from .own_fault import own_fault
from .session import Session
from .session_hop import Patience
from .token_stream import DriverStream
from .work_records import SessionAudits


class LocalParts(Protocol):
    """Loads the units that a driver keeps for itself; `node.local_parts` has the real one."""

    async def load(self, model: ModelId, local_layers: int) -> tuple[Compute, str]:
        """A compute that holds embed, the first layers and the head; and its dtype. raises: UsageError, OutOfMemory"""


class Driver:
    """A `generation.TokenSource` over the swarm. clock: monotonic seconds; seed: fixes ids and jitter in tests."""

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        planner: ChainPlanner,
        tasks: TaskGroup,
        clock: Callable[[], float] = anyio.current_time,
        patience: Patience | None = None,
        local_parts: LocalParts | None = None,
        seed: int | None = None,
        paying: Paying | None = None,
        stamping: Stamping | None = None,
        receiver: CacheReceiver | None = None,
        audits: SessionAudits | None = None,
    ) -> None:
        self.audits = audits
        self._transport = transport
        self._gate = gate
        self._planner = planner
        self._tasks = tasks  # closing streams outlive the sessions that used them
        self._clock = clock
        self._patience = patience or Patience()
        self._local_parts = local_parts
        self._random = random.Random(seed)
        self._seeded = seed is not None
        self._paying = paying
        self._stamping = stamping
        # snapshots that the client keeps itself; a node has one for what it keeps for others too
        self._receiver = receiver or CacheReceiver(transport, gate, CacheKeeper())

    async def models(self) -> list[ServedModel]:
        """raises: DaemonDied, Refused (this node is no member any more) rather than a list with gaps"""
        found = await self._planner.models()
        if not found or any(model.missing for model in found):
            fault = await own_fault(self._transport, self._gate)
            if fault is not None:
                raise fault
        return found

    async def manifest(self, model: ModelId) -> Manifest:
        """raises: as the planner's; DaemonDied, Refused when that is the reason"""
        try:
            return await self._planner.manifest(model)
        except ShoalError as error:
            raise await own_fault(self._transport, self._gate) or error from error

    async def text_files(self, model: ModelId) -> dict[str, bytes]:
        return await self._planner.text_files(model)

    def _new_session_id(self) -> SessionId:
        return SessionId(f"{self._random.getrandbits(96):024x}" if self._seeded else secrets.token_hex(12))

    @asynccontextmanager
    async def generate(self, request: TokenRequest) -> AsyncIterator[DriverStream]:
        manifest = await self.manifest(request.model)
        _check(request, manifest)
        name = self._new_session_id()
        payment = self._paying.session(request, manifest) if self._paying else None
        slice_tokens = payment.slice_tokens if payment else None
        stamp = await self._stamping.stamp() if self._stamping else b""
        feeder: Feeder = IdFeeder(slice_tokens)
        head: LocalHead | None = None
        span, dtype = whole(manifest.layers), None
        if request.local_layers:
            feeder, head, dtype = await self._open_local(request, manifest, name, slice_tokens)
            span = Span(1 + request.local_layers, manifest.layers + 1)
        session = Session(
            prompt=request.ids,
            span=span,
            max_new=request.max_new_tokens,
            stop_ids=request.stop_ids,
            exclude=request.exclude,
            patience=self._patience,
            max_hops=request.max_hops,
            exactness=request.exactness,
            keep_snapshots=request.keep_snapshots,
        )
        if request.keep_snapshots:
            await self._receiver.start()
        stream = DriverStream(
            name,
            session,
            request,
            manifest,
            self._transport,
            self._gate,
            self._planner,
            feeder,
            head,
            self._clock,
            dtype,
            payment,
            stamp,
            self._tasks,
            self._receiver,
            partial(self._pay_prefill, request, manifest),
        )
        error: Exception | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.run, tasks)
                try:
                    yield stream
                except Exception as caught:  # noqa: BLE001  goes on below, outside the group, as it is
                    error = caught
                tasks.cancel_scope.cancel()
        finally:
            stream.finish()
            feeder.close()
            if head is not None:
                head.close()
            stream.let_all_go()
            if self.audits is not None:
                for used in (stream.used(), *stream.used_apart()):
                    self.audits.ended(used)
        if error is not None:
            raise error

    def _pay_prefill(self, request: TokenRequest, manifest: Manifest, ids: tuple[int, ...]) -> Payment | None:
        if self._paying is None:
            return None
        return self._paying.session(replace(request, ids=ids, max_new_tokens=0), manifest)

    async def _open_local(
        self, request: TokenRequest, manifest: Manifest, name: SessionId, slice_tokens: int | None
    ) -> tuple[LocalFeeder, LocalHead, str]:
        if self._local_parts is None:
            raise UsageError("local_layers needs torch and the model's files on this machine; this client has neither")
        compute, dtype = await self._local_parts.load(request.model, request.local_layers)
        room = len(request.ids) + request.max_new_tokens
        front, back = SessionId(name + "front"), SessionId(name + "back")
        await compute.open(front, Span(0, 1 + request.local_layers), room, request.sampling, ())
        history = request.ids if request.sampling.needs_history else ()
        try:
            await compute.open(back, Span(manifest.layers + 1, manifest.layers + 2), room, request.sampling, history)
        except BaseException:
            compute.close(front)
            raise
        return LocalFeeder(compute, front, KEEP_BYTES, slice_tokens), LocalHead(compute, back), dtype


def _check(request: TokenRequest, manifest: Manifest) -> None:
    """raises: UsageError, ContextTooLong"""
    if not request.ids:
        raise UsageError("the prompt is empty")
    if request.max_new_tokens < 1:
        raise UsageError("max_new_tokens must be at least 1")
    if not 0 <= min(request.ids) <= max(request.ids) < manifest.vocabulary:
        raise UsageError(f"a token id lies outside the vocabulary of {manifest.vocabulary}: wrong tokenizer?")
    if request.exactness not in EXACTNESSES:
        raise UsageError(f"exactness is one of {', '.join(EXACTNESSES)}, not {request.exactness!r}")
    if not 0 <= request.local_layers < manifest.layers:
        raise UsageError(f"local_layers must lie in 0:{manifest.layers - 1} for this model of {manifest.layers} layers")
    if request.prefiller is not None and not request.may_prefill_apart:
        raise UsageError("a peer that prefills goes with neither share_prefix, session nor local_layers")
    if request.share_prefix and request.session:
        raise UsageError("give share_prefix or a session: what a session keeps is its own")
    checked_session(request.session)
    total = len(request.ids) + request.max_new_tokens
    if total > manifest.max_context:
        raise ContextTooLong(
            f"the prompt has {len(request.ids)} tokens and {request.max_new_tokens} are asked for: {total} together, "
            f"but the model's context is {manifest.max_context} tokens"
        )
