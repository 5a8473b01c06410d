"""The driver's side of audits: after a session, draw, ask the server for its work and others to compute it again.

What is drawn follows from a secret that the server does not know when it signs. A sound chunk costs one re-execution;
whatever is not sound is put before jurors before it counts. As soon as a server is under suspicion all chunks of its
statement are looked at, so that one finding of a false session is enough to know the rest of it.

What the driver knows itself needs no re-execution: which ids went in at the first hop, which tokens came out of the
last, and that what one hop signed as output is what the next one signed as input.

A server that does not answer, or no longer keeps its work, may have been started again: that is no finding. Such
answers are counted for themselves (`incentives/refusals.py`).
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import anyio
import anyio.to_thread
import structlog

from shoal.incentives import audit_case, audit_draw, audit_evidence, audit_report, work_links, work_statement
from shoal.incentives.audit_case import AuditCase, CaseChunk
from shoal.incentives.audit_draw import JURORS, audit_rate, auditors, is_drawn
from shoal.incentives.audit_evidence import ChunkEvidence, Unproven, audited_hash, proven
from shoal.incentives.audit_report import SECOND_LOOK, AuditReport, Judgement, is_consistent, is_signed, judged
from shoal.incentives.audit_threshold import Finding
from shoal.incentives.work_chunks import CHUNK_POSITIONS
from shoal.incentives.work_statement import Served, WorkStatement
from shoal.swarm.errors import MalformedMessage, NotSpoken, Refused, RemoteFault, ShoalError, Unavailable
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.members.handshake import Gate
from shoal.swarm.transport import Transport

from .audit_calls import AskEvidence, AskLink, AskReplay, AskStatement, ask
from .audit_memory import AuditMemory

log = structlog.get_logger(__name__)
ANSWER_S = 30.0  # for a server to show its work
REPLAY_S = 180.0  # for an auditor: it may have to find the limits of the class first
ENDING_S = 10.0  # until a hop has heard that the session is over
AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The next hop of a session. from_position: where the two began to work together"""

    peer: PeerId
    key: bytes
    session: SessionId
    served: Served
    from_position: int = 0


@dataclass(frozen=True, slots=True)
class ServedSession:
    """What the driver itself knows of a hop: nothing of it is taken from the server.

    positions: that were computed for certain
    most_chunks: whose bytes a server has to keep
    ids: all of the session where the span has the embedding or the head, else ()
    answers_from: position from which on the hop was asked for a token at each, None for a span without the head
    sampling: encoded, b"" for a span without the head
    """

    peer: PeerId
    key: bytes
    session: SessionId
    served: Served
    positions: int
    most_chunks: int = 2**20
    ids: tuple[int, ...] = ()
    answers_from: int | None = None
    sampling: bytes | None = None
    next: Neighbour | None = None


@dataclass(frozen=True, slots=True)
class AuditOutcome:
    """One audited chunk, with all that a stranger needs to judge anew.

    secret: what the draw follows from; evidence: encoded
    """

    subject: bytes
    statement: WorkStatement
    index: int
    secret: bytes
    reports: tuple[AuditReport, ...]
    judgement: Judgement
    evidence: bytes

    @property
    def audited(self) -> bytes:
        return audited_hash(self.statement, self.index)


@dataclass(frozen=True, slots=True)
class SessionAudit:
    """What came of one hop of one session.

    case: that others can check, with its outcome; None when nothing was judged, or it does not suffice
    """

    judged: int
    case: AuditCase | None = None
    is_false: bool = False


class Answer(Enum):
    """What the server did when it was asked for its work."""

    SHOWN = auto()
    EXCUSED = auto()  # it may have been started again, or is gone
    WITHOUT = auto()  # it speaks of no audits, as a node without a ledger
    FALSE = auto()  # what no honest server says


Holders = Callable[[Served, bytes], Sequence[tuple[PeerId, bytes]]]
Here = Callable[[bytes], Awaitable[AuditReport]]


@dataclass
class AuditDriver:
    """holders: of the class on the kind of device of the server with this key, itself and this node left out or not:
    nobody is asked about himself

    hears: called with each outcome; here: computes evidence again in this process, for a node that holds the class
    addresses: of a peer, where they are known
    keeps_ledger: whether a server has ever signed an entry; who has not earns nothing, and is not blamed for having
    no work to show
    """

    transport: Transport
    gate: Gate
    holders: Holders
    hears: Callable[[AuditOutcome], None]
    known: AuditMemory
    here: Here | None = None
    addresses: Callable[[PeerId], Sequence[str]] = lambda _: ()
    keeps_ledger: Callable[[bytes], bool] = lambda _: True
    secret: Callable[[], bytes] = lambda: secrets.token_bytes(32)

    async def audit(self, session: ServedSession, secret: bytes | None = None) -> SessionAudit:
        """One hop of a session that is over. secret: one for all hops of a session, as each signs once"""
        secret = secret or self.secret()
        statement = await self._statement(session, secret)
        if statement is None:
            return SessionAudit(0)
        found: dict[int, tuple[Finding, CaseChunk]] = {}
        done = set[int]()
        while (index := self._next(session, statement, secret, done)) is not None:
            done.add(index)
            judged_chunk = await self._one(session, statement, secret, index)
            if judged_chunk is not None:
                found[index] = judged_chunk
        if not found:
            return SessionAudit(0)
        if all(finding is Finding.SOUND for finding, _ in found.values()):
            case = audit_case.case_for(statement, secret, [each for _, each in found.values()])
            return SessionAudit(len(found), case)
        against = audit_case.case_against(statement, secret, found)
        return SessionAudit(len(found), against, is_false=against is not None)

    async def _statement(self, session: ServedSession, secret: bytes) -> WorkStatement | None:
        question = AskStatement(session.session, audit_draw.commitment(secret))
        answer, data = Answer.EXCUSED, b""
        with anyio.move_on_after(ENDING_S):
            while True:
                answer, data, reason = await self._asked(session.peer, question)
                if answer is not Answer.EXCUSED or "still open" not in reason:
                    break
                await anyio.sleep(AGAIN_S)
        if answer is Answer.SHOWN:
            try:
                statement = _checked(work_statement.decode(data), session, secret)
            except RemoteFault as error:
                answer, reason = Answer.FALSE, str(error)
            else:
                self.known.answered(session.key, refused=False)
                return statement
        self._missed(session, answer, reason)
        return None

    async def _asked(self, peer: PeerId, question: AskStatement | AskEvidence | AskLink) -> tuple[Answer, bytes, str]:
        try:
            addresses = self.addresses(peer)
            return Answer.SHOWN, await ask(self.transport, self.gate, peer, question, ANSWER_S, addresses), ""
        except RemoteFault as error:
            return Answer.FALSE, b"", str(error)
        except NotSpoken as error:
            return Answer.WITHOUT, b"", str(error)
        except (Refused, Unavailable) as error:
            return Answer.EXCUSED, b"", str(error)

    def _missed(self, session: ServedSession, answer: Answer, reason: str) -> None:
        log.info("work_not_shown", peer=session.peer, false=answer is Answer.FALSE, reason=reason)
        if answer is Answer.FALSE:
            self.known.found(session.key, Finding.FAR)
        elif answer is not Answer.WITHOUT or self.keeps_ledger(session.key):
            self.known.answered(session.key, refused=True)

    def _next(self, session: ServedSession, statement: WorkStatement, secret: bytes, done: set[int]) -> int | None:
        known = self.known.server(statement.server)
        rate = audit_rate(known.sound, known.most)
        for index in range(min(statement.count, session.most_chunks)):
            if index not in done and is_drawn(statement, secret, index, rate):
                return index
        return None

    async def _one(
        self, session: ServedSession, statement: WorkStatement, secret: bytes, index: int
    ) -> tuple[Finding, CaseChunk] | None:
        answer, data, reason = await self._asked(session.peer, AskEvidence(session.session, index))
        evidence: ChunkEvidence | None = None
        if answer is Answer.SHOWN:
            try:
                evidence = await anyio.to_thread.run_sync(_read, data, statement, index)
                _check_ends(evidence, session)
            except RemoteFault as error:
                answer, evidence, reason = Answer.FALSE, None, str(error)
        if evidence is None:
            self._missed(session, answer, reason)
            return None
        await self._compare(session, statement, evidence)
        reports = await self.reports(session.served, statement, index, data, secret, {session.peer})
        judgement = judged(reports, session.key)
        self.learn(reports, judgement)
        self.hears(AuditOutcome(session.key, statement, index, secret, tuple(reports), judgement, data))
        if judgement.finding is None:
            return None
        self.known.found(session.key, judgement.finding)
        return judgement.finding, audit_case.chunk(index, reports, data)

    async def reports(
        self,
        served: Served,
        statement: WorkStatement,
        index: int,
        data: bytes,
        secret: bytes,
        not_these: set[PeerId],
        *,
        jury: bool = False,
    ) -> list[AuditReport]:
        """What others find. jury: several are asked whatever the first one says"""
        keys = {
            peer: key
            for peer, key in self.holders(served, statement.server)
            if peer not in not_these and key != statement.server
        }
        trusted = [peer for peer, key in keys.items() if not self.known.auditor(key).convicted]
        reports: list[AuditReport] = []
        wanted = 1 + JURORS if jury else 1
        for peer in auditors(statement, secret, index, trusted):
            report = await self._report(peer, keys[peer], statement, index, data)
            if report is None:
                continue
            reports.append(report)
            if len(reports) == 1 and self._wants_jurors(report, secret):
                wanted = 1 + JURORS
            if len(reports) >= wanted:
                break
        return reports

    def _wants_jurors(self, report: AuditReport, secret: bytes) -> bool:
        again = int.from_bytes(audit_draw.commitment(secret + report.audited)[:4], "big") < SECOND_LOOK * 2**32
        return report.finding != Finding.SOUND or again

    async def _report(
        self, peer: PeerId, key: bytes, statement: WorkStatement, index: int, data: bytes
    ) -> AuditReport | None:
        try:
            if peer == self.transport.me:
                report = await self.here(data) if self.here else None
            else:
                answer = await ask(self.transport, self.gate, peer, AskReplay(data), REPLAY_S, self.addresses(peer))
                report = audit_report.decode(answer)
        except ShoalError:
            return None  # gone, full, or unwilling: the next one is asked
        if report is None:
            return None
        sound = is_signed(report) and is_consistent(report) and report.auditor == key
        return report if sound and report.audited == audited_hash(statement, index) else None

    def learn(self, reports: Sequence[AuditReport], judgement: Judgement) -> None:
        """What the auditors of a chunk were worth."""
        for report in reports if len(reports) > 1 and judgement.finding is not None else ():
            wrong = report.auditor in judgement.dissenters
            self.known.audited(report.auditor, Finding.GROSS if wrong else Finding.SOUND)

    async def _compare(self, session: ServedSession, statement: WorkStatement, evidence: ChunkEvidence) -> None:
        """Did what this hop signed as output come in at the next? Who does not answer is not blamed."""
        after, index = session.next, evidence.index
        if after is None or CHUNK_POSITIONS * index < after.from_position:
            return
        _, data, _ = await self._asked(after.peer, AskStatement(after.session, statement.draw))
        _, shown, _ = await self._asked(after.peer, AskLink(after.session, index)) if data else (None, b"", "")
        try:
            theirs, link = work_statement.decode(data), work_links.links.decode(shown)
        except MalformedMessage:
            return
        if (theirs.server, theirs.session, theirs.served) != (after.key, after.session.encode(), after.served):
            return
        if not work_statement.is_signed(theirs) or index >= theirs.count or link.count != evidence.count:
            return  # the last chunk of two hops may end at different positions
        held = work_links.took(theirs, link, index, evidence.made.hidden)
        self.known.linked(session.key, after.key, false=not held)


def _read(data: bytes, statement: WorkStatement, index: int) -> ChunkEvidence:
    """Megabytes are hashed here, beside the event loop. raises: MalformedMessage, Unproven"""
    evidence = audit_evidence.decode(data)
    if proven(evidence) != statement or evidence.index != index:
        raise Unproven("evidence of another chunk")
    return evidence


def _checked(statement: WorkStatement, session: ServedSession, secret: bytes) -> WorkStatement:
    """raises: MalformedMessage for a statement about anything but what this session was"""
    expected = (session.key, session.session.encode(), session.served, audit_draw.commitment(secret))
    if (statement.server, statement.session, statement.served, statement.draw) != expected:
        raise MalformedMessage("a statement of other work")
    if session.sampling is not None and statement.sampling != session.sampling:
        raise MalformedMessage("a statement of another way to draw tokens")
    if not work_statement.is_signed(statement) or statement.positions < session.positions:
        raise MalformedMessage("a statement that is not signed, or leaves work out")
    return statement


def _check_ends(evidence: ChunkEvidence, session: ServedSession) -> None:
    """What went in at the first hop and came out of the last is known here. raises: Unproven"""
    if not session.ids:
        return
    first = CHUNK_POSITIONS * evidence.index
    given = [token for each in evidence.inputs for token in each.ids]
    if given and session.ids[: len(given)] != tuple(given)[: len(session.ids)]:
        raise Unproven("the server signed for other ids than it was given")
    if session.answers_from is None:
        return
    for at, said in enumerate(evidence.made.tokens, first):
        if at >= session.answers_from and at + 1 < len(session.ids) and said != session.ids[at + 1] + 1:
            raise Unproven("the server signed for another token than it sent")
