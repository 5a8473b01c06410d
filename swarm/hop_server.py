"""The serving side of sessions: accepts control and push streams and joins them to hops."""

from dataclasses import dataclass
from typing import Protocol

import anyio

from . import messages
from .compute import Compute
from .errors import (
    ContextTooLong,
    MalformedMessage,
    OutOfMemory,
    Refused,
    RemoteFault,
    ShoalError,
    StreamBroken,
    Unavailable,
)
from .handshake import Gate, failure, prompt_message, receive_greeting
from .hop import ATTACH_PATIENCE_S, Hop
from .hop_prefix import HopPrefix, begun
from .identifiers import ModelId, SessionId
from .lanes import Accounts, NoBooks
from .messages import Attach, Open, Opened
from .metering import Meter, Metering
from .prefixes import Prefixes
from .transport import Stream, Transport
from .units import Span
from .work_records import WorkRecords

KEEP_BYTES = 64 << 20  # of outputs per session, for replay


class Hosting(Protocol):
    """What this node serves now."""

    def find(self, model: ModelId, dtype: str, span: Span) -> Compute:
        """raises: Refused when the model, the dtype or a unit of the span is not served here"""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """For status: a session that is open here."""

    session: SessionId
    driver: str
    span: Span
    held: int


class HopServer:
    """metering: who is paid; accounts: whose turn it is; records: who keeps what was done, for
    audits; prefixes: KV that outlives its session"""

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        hosting: Hosting,
        keep_bytes: int = KEEP_BYTES,
        *,
        metering: Metering | None = None,
        accounts: Accounts | None = None,
        records: WorkRecords | None = None,
        prefixes: Prefixes | None = None,
    ) -> None:
        self._transport = transport
        self._gate = gate
        self._hosting = hosting
        self._keep_bytes = keep_bytes
        self._metering = metering
        self._accounts = accounts or NoBooks()
        self._records = records
        self._prefixes = prefixes
        self._hops: dict[SessionId, Hop] = {}
        self._appeared = anyio.Event()

    async def start(self) -> None:
        await self._transport.serve(messages.CONTROL_PROTOCOL, self._control)
        await self._transport.serve(messages.PUSH_PROTOCOL, self._push)

    def sessions(self) -> list[OpenSession]:
        return [OpenSession(key, hop.driver, hop.request.span, hop.held) for key, hop in self._hops.items()]

    async def _control(self, stream: Stream) -> None:
        await receive_greeting(stream, self._gate)
        request = await prompt_message(stream)
        if not isinstance(request, Open):
            raise MalformedMessage(f"a control stream began with {type(request).__name__}")
        hop = await self._open(stream, request)
        if hop is None:
            return
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hop.connect_downstream)
                tasks.start_soon(hop.end_when_idle, tasks.cancel_scope)
                if hop.prefix is not None:
                    tasks.start_soon(hop.prefix.run, hop.tell_driver)
                try:
                    await hop.control_loop(tasks)
                finally:
                    tasks.cancel_scope.cancel()
        except* (StreamBroken, RemoteFault):
            pass  # the driver is gone or talks nonsense: the session ends here
        finally:
            if hop.prefix is not None:
                await hop.prefix.settle()
            del self._hops[request.session]
            hop.close()
            with anyio.CancelScope(shield=True):
                await stream.close()

    async def _open(self, stream: Stream, request: Open) -> Hop | None:
        kind: messages.FailureKind = "not_hosted"
        meter: Meter | None = None
        prefix: HopPrefix | None = None
        try:
            compute = self._hosting.find(request.model, request.dtype, request.span)
            kind = "refused"
            if request.session in self._hops:
                raise Refused("a session of this name is open already")
            if self._metering is not None:
                meter = await self._metering.open(stream.peer, request)
            claim = await self._accounts.claim(stream.peer, request)
            prefix = begun(self._prefixes, request, stream.peer, compute)
            kind = "no_room"
            await compute.open(
                request.session, request.span, request.max_tokens, request.sampling, request.history, claim
            )
        except ShoalError as error:
            if isinstance(error, ContextTooLong):
                kind = "too_long"
            elif not isinstance(error, OutOfMemory | Refused):
                kind = "local"
            if meter is not None:
                meter.close()
            if prefix is not None:
                prefix.close()
            await stream.send(messages.encode(failure(kind, error)))
            await stream.close()
            return None
        record = self._records.begin(request, stream.peer) if self._records is not None else None
        hop = Hop(request, compute, stream, self._transport, self._gate, self._keep_bytes, meter, record, prefix)
        self._hops[request.session] = hop
        self._appeared.set()
        self._appeared = anyio.Event()
        try:
            if prefix is not None:
                await stream.send(messages.encode(prefix.staged()))
            await stream.send(messages.encode(Opened(request.session)))
        except Unavailable:
            del self._hops[request.session]
            hop.close()
            return None
        return hop

    async def _push(self, stream: Stream) -> None:
        await receive_greeting(stream, self._gate)
        attach = await prompt_message(stream)
        if not isinstance(attach, Attach):
            raise MalformedMessage(f"a push stream began with {type(attach).__name__}")
        with anyio.move_on_after(ATTACH_PATIENCE_S):
            while attach.session not in self._hops:
                await self._appeared.wait()
        hop = self._hops.get(attach.session)
        if hop is None:
            raise Refused("no such session")
        with hop.reading():
            await hop.admit_upstream(stream.peer)
            await hop.take_all(stream)
