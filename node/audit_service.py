"""The answering side of audits: a server shows its work to the driver of a session, a holder computes a chunk again.

Nothing here may slow or fail a session: replays run one at a time, in the free lane, and only while the cache has room
to spare. Who is turned away for that asks somebody else.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.to_thread

from shoal.incentives import audit_evidence, audit_report, work_links, work_statement
from shoal.incentives.audit_evidence import audited_hash, proven
from shoal.incentives.audit_report import AuditReport
from shoal.incentives.audit_threshold import Threshold
from shoal.incentives.work_statement import Served
from shoal.swarm.errors import Refused, ShoalError
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.members.handshake import Gate, receive_greeting
from shoal.swarm.transport import Stream, Transport

from . import audit_calls
from .audit_calls import Answer, AskCase, AskEvidence, AskLink, AskReplay, AskStatement, No, Question
from .audit_records import SessionRecords

if TYPE_CHECKING:
    from .engine import Engine  # torch

MOST_WAITING = 8  # replays that are asked for at once; more are turned away
SPARE = 4  # one in so many of the cache's positions stays free of replays


class Replaying(Protocol):
    """What this node can compute again."""

    def engine(self, model: ModelId) -> "Engine | None": ...

    async def threshold(self, served: Served, evidence: audit_evidence.ChunkEvidence) -> Threshold:
        """evidence: what is to be judged. raises: Refused when this class cannot be calibrated here"""


class AuditService:
    """case: encoded `AuditCase` of this hash, kept here; hears: called with each report that was made here"""

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        identity: Identity,
        records: SessionRecords,
        replaying: Replaying,
        case: Callable[[bytes], bytes | None] = lambda _: None,
        hears: Callable[[AuditReport], None] = lambda _: None,
    ) -> None:
        self._transport, self._gate, self._identity = transport, gate, identity
        self._records, self._replaying, self._case, self._hears = records, replaying, case, hears
        self._one = anyio.Lock()
        self._waiting = 0

    async def start(self) -> None:
        await self._transport.serve(audit_calls.PROTOCOL, self._serve)

    async def _serve(self, stream: Stream) -> None:
        await receive_greeting(stream, self._gate)
        while (frame := await stream.receive()) is not None:
            question = audit_calls.questions.decode(frame)
            try:
                said: Answer | No = Answer(await self._answered(stream.peer, question))
            except ShoalError as error:
                said = No(str(error)[:500])
            await stream.send(audit_calls.answers.encode(said))
        await stream.close()

    async def _answered(self, peer: PeerId, question: Question) -> bytes:
        match question:
            case AskStatement(session, draw):
                return work_statement.encode(self._records.statement(peer, session, draw))
            case AskEvidence(session, index):
                evidence = self._records.evidence(peer, session, index)
                return await anyio.to_thread.run_sync(audit_evidence.encode, evidence)
            case AskLink(session, index):
                return work_links.links.encode(self._records.link(peer, session, index))
            case AskReplay(data):
                return audit_report.encode(await self.report(data))
            case AskCase(digest):
                found = self._case(digest)
                if found is None:
                    raise Refused("no case of this hash is kept here")
                return found

    async def report(self, data: bytes) -> AuditReport:
        """Compute a chunk again. raises: MalformedMessage, Unproven, Refused, OutOfMemory, LocalFault"""
        if self._waiting >= MOST_WAITING:
            raise Refused("enough is being computed again here; ask somebody else")
        self._waiting += 1
        try:
            evidence, statement = await anyio.to_thread.run_sync(_read, data)
            async with self._one:
                return await self._report(evidence, statement)
        finally:
            self._waiting -= 1

    async def _report(
        self, evidence: audit_evidence.ChunkEvidence, statement: work_statement.WorkStatement
    ) -> AuditReport:
        served = statement.served
        engine = self._replaying.engine(ModelId(served.model.hex()))
        if engine is None:
            raise Refused("this model is not served here")
        threshold = await self._replaying.threshold(served, evidence)
        if engine.free_tokens - audit_evidence.positions_of(evidence) < engine.kv_tokens // SPARE:
            raise Refused("the cache is needed for sessions now; ask somebody else")
        from .audit_replay import replay  # torch, which is there with the engine

        found = await replay(engine, evidence)
        name = audited_hash(statement, evidence.index)
        wrong = min(255, found.wrong_tokens)
        report = audit_report.write(
            self._identity, name, found.distance, threshold.limit, wrong, found.finding(threshold)
        )
        self._hears(report)
        return report


def _read(data: bytes) -> tuple[audit_evidence.ChunkEvidence, work_statement.WorkStatement]:
    """Megabytes are hashed here, beside the event loop."""
    evidence = audit_evidence.decode(data)
    return evidence, proven(evidence)
