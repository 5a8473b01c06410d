"""Audits over the network: a server shows its work to the driver of a session, a holder computes a chunk again.

One stream, one question at a time, frames as large as those of sessions: evidence of a long session does not fit a
unary call.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from shoal.incentives import audit_evidence, audit_report, work_statement
from shoal.incentives.audit_evidence import audited_hash, proven
from shoal.incentives.audit_report import AuditReport
from shoal.incentives.audit_threshold import Threshold
from shoal.incentives.bodies import Hash
from shoal.incentives.work_statement import Served
from shoal.swarm.errors import MalformedMessage, Refused, RemoteFault, ShoalError, StreamBroken
from shoal.swarm.handshake import Gate, greet, read_welcome, receive_greeting
from shoal.swarm.identifiers import ModelId, PeerId, SessionId
from shoal.swarm.identity import Identity
from shoal.swarm.transport import Stream, Transport

from .audit_records import SessionRecords
from .audit_replay import replay
from .engine import Engine

PROTOCOL = "/shoal/audit/1"


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    pass


class AskStatement(_Message, frozen=True):
    session: SessionId
    draw: Hash


class AskEvidence(_Message, frozen=True):
    session: SessionId
    index: int


class AskReplay(_Message, frozen=True):
    evidence: bytes


class Answer(_Message, frozen=True):
    """Bytes of a WorkStatement, ChunkEvidence or AuditReport."""

    data: bytes


class No(_Message, frozen=True):
    text: str


Question = AskStatement | AskEvidence | AskReplay
_encoder = msgspec.msgpack.Encoder()
_questions: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answers: msgspec.msgpack.Decoder[Answer | No] = msgspec.msgpack.Decoder(Answer | No)


class Replaying(Protocol):
    """What this node can compute again."""

    def engine(self, model: ModelId) -> Engine | None: ...

    async def threshold(self, served: Served) -> Threshold:
        """raises: Refused when this class cannot be calibrated here"""


class AuditService:
    """hears: called with each report that was made here for somebody"""

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        identity: Identity,
        records: SessionRecords,
        replaying: Replaying,
        hears: Callable[[AuditReport], None] = lambda _: None,
    ) -> None:
        self._transport, self._gate, self._identity = transport, gate, identity
        self._records, self._replaying, self._hears = records, replaying, hears

    async def start(self) -> None:
        await self._transport.serve(PROTOCOL, self._serve)

    async def _serve(self, stream: Stream) -> None:
        await receive_greeting(stream, self._gate)
        while (frame := await stream.receive()) is not None:
            try:
                question = _questions.decode(frame)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise MalformedMessage(f"not a question of an audit: {error}") from error
            try:
                answer: Answer | No = Answer(await self._answered(stream.peer, question))
            except ShoalError as error:
                answer = No(str(error)[:500])
            await stream.send(_encoder.encode(answer))
        await stream.close()

    async def _answered(self, peer: PeerId, question: Question) -> bytes:
        match question:
            case AskStatement(session, draw):
                return work_statement.encode(self._records.statement(peer, session, draw))
            case AskEvidence(session, index):
                return audit_evidence.encode(self._records.evidence(peer, session, index))
            case AskReplay(data):
                return audit_report.encode(await self._report(data))

    async def _report(self, data: bytes) -> AuditReport:
        evidence = audit_evidence.decode(data)
        statement = proven(evidence)
        served = statement.served
        engine = self._replaying.engine(ModelId(served.model.hex()))
        if engine is None:
            raise Refused("this model is not served here")
        threshold = await self._replaying.threshold(served)
        found = await replay(engine, evidence)
        name = audited_hash(statement, evidence.index)
        wrong = min(255, found.wrong_tokens)
        report = audit_report.write(
            self._identity, name, found.distance, threshold.limit, wrong, found.finding(threshold)
        )
        self._hears(report)
        return report


async def ask(transport: Transport, gate: Gate, peer: PeerId, question: Question) -> bytes:
    """raises: Refused with the peer's reason, Unavailable, RemoteFault"""
    stream = await transport.open(peer, PROTOCOL)
    try:
        await greet(stream, gate)
        await stream.send(_encoder.encode(question))
        await read_welcome(stream, gate)
        frame = await stream.receive()
    except BaseException:
        stream.abort()
        raise
    await stream.close()
    if frame is None:
        raise StreamBroken(f"{peer} gave no answer")
    try:
        answer = _answers.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteFault(f"{peer} sent no answer of an audit") from error
    if isinstance(answer, No):
        raise Refused(answer.text)
    return answer.data
