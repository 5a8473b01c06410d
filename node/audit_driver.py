"""The driver's side of audits: after a session, draw, ask the server for its work and others to compute it again.

What is drawn follows from a secret that the server does not know when it signs. A sound chunk costs one re-execution;
whatever is not sound is put before jurors before it counts. As soon as a server is under suspicion all chunks of its
statement are looked at, so that one finding of a false session is enough to know the rest of it.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.incentives import audit_draw, audit_evidence, audit_report, work_statement
from shoal.incentives.audit_draw import JURORS, audit_rate, auditors, is_drawn
from shoal.incentives.audit_evidence import Unproven, audited_hash, proven
from shoal.incentives.audit_report import SECOND_LOOK, AuditReport, Judgement, is_consistent, is_signed, judged
from shoal.incentives.audit_threshold import Finding
from shoal.incentives.sequential_test import Suspicion
from shoal.incentives.work_statement import Served, WorkStatement
from shoal.swarm.errors import MalformedMessage, Refused, RemoteFault, ShoalError
from shoal.swarm.handshake import Gate
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.transport import Transport

from .audit_service import AskEvidence, AskReplay, AskStatement, ask


@dataclass(frozen=True, slots=True)
class ServedSession:
    """What the driver itself knows of a hop: nothing of it is taken from the server. positions: that were computed"""

    peer: PeerId
    key: bytes
    session: SessionId
    served: Served
    positions: int


@dataclass(frozen=True, slots=True)
class AuditOutcome:
    """One audited chunk, with all that a stranger needs to judge anew.

    secret: what the draw follows from; evidence: encoded, b"" when the server would not show it
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


@dataclass
class AuditDriver:
    """holders: of the class, the server and this node left out or not: nobody is asked about himself

    standing: of servers by key, as the ledger knows it; hears: called with each outcome
    """

    transport: Transport
    gate: Gate
    holders: Callable[[Served], Sequence[tuple[PeerId, bytes]]]
    hears: Callable[[AuditOutcome], None]
    standing: dict[bytes, Suspicion] = field(default_factory=dict)
    auditors: dict[bytes, Suspicion] = field(default_factory=dict)  # what their re-executions were worth
    secret: Callable[[], bytes] = lambda: secrets.token_bytes(32)

    async def audit(self, session: ServedSession) -> int:
        """returns: chunks that were judged. A server that signs nothing, or not for this, stands as one found far.

        raises: Unavailable when the server cannot be reached: nobody's fault
        """
        secret = self.secret()
        question = AskStatement(session.session, audit_draw.commitment(secret))
        try:
            statement = _checked(
                work_statement.decode(await ask(self.transport, self.gate, session.peer, question)), session, secret
            )
        except (Refused, RemoteFault):
            self._count(session.key, Finding.FAR)
            return 0
        count, done = 0, set[int]()
        while (index := self._next(statement, secret, done)) is not None:
            done.add(index)
            count += await self._one(session, statement, secret, index)
        return count

    def _next(self, statement: WorkStatement, secret: bytes, done: set[int]) -> int | None:
        known = self.standing.get(statement.server, Suspicion())
        rate = audit_rate(known.sound, known.most)
        for index in range(statement.count):
            if index not in done and is_drawn(statement, secret, index, rate):
                return index
        return None

    async def _one(self, session: ServedSession, statement: WorkStatement, secret: bytes, index: int) -> int:
        try:
            data = await ask(self.transport, self.gate, session.peer, AskEvidence(session.session, index))
            evidence = audit_evidence.decode(data)
            if proven(evidence) != statement or evidence.index != index:
                raise Unproven("evidence of another chunk")
        except (Refused, RemoteFault):
            self._count(session.key, Finding.FAR)  # signed for, and not to be shown
            return 0
        keys = {peer: key for peer, key in self.holders(session.served) if peer != session.peer}
        trusted = [peer for peer, key in keys.items() if not self.auditors.get(key, Suspicion()).convicted]
        reports: list[AuditReport] = []
        wanted = 1
        for peer in auditors(statement, secret, index, trusted):
            report = await self._report(peer, keys[peer], statement, index, data)
            if report is None:
                continue
            reports.append(report)
            if len(reports) == 1 and self._wants_jurors(report, secret):
                wanted = 1 + JURORS
            if len(reports) >= wanted:
                break
        judgement = judged(reports, session.key)
        self._learn(session.key, reports, judgement)
        self.hears(AuditOutcome(session.key, statement, index, secret, tuple(reports), judgement, data))
        return judgement.finding is not None

    def _wants_jurors(self, report: AuditReport, secret: bytes) -> bool:
        again = int.from_bytes(audit_draw.commitment(secret + report.audited)[:4], "big") < SECOND_LOOK * 2**32
        return report.finding != Finding.SOUND or again

    async def _report(
        self, peer: PeerId, key: bytes, statement: WorkStatement, index: int, data: bytes
    ) -> AuditReport | None:
        try:
            report = audit_report.decode(await ask(self.transport, self.gate, peer, AskReplay(data)))
        except ShoalError:
            return None  # gone, full, or unwilling: the next one is asked
        sound = is_signed(report) and is_consistent(report) and report.auditor == key
        return report if sound and report.audited == audited_hash(statement, index) else None

    def _learn(self, server: bytes, reports: Sequence[AuditReport], judgement: Judgement) -> None:
        if judgement.finding is not None:
            self._count(server, judgement.finding)
        for report in reports if len(reports) > 1 and judgement.finding is not None else ():
            wrong = report.auditor in judgement.dissenters
            known = self.auditors.get(report.auditor, Suspicion())
            self.auditors[report.auditor] = known.after(Finding.GROSS if wrong else Finding.SOUND)

    def _count(self, server: bytes, finding: Finding) -> None:
        self.standing[server] = self.standing.get(server, Suspicion()).after(finding)


def _checked(statement: WorkStatement, session: ServedSession, secret: bytes) -> WorkStatement:
    """raises: MalformedMessage for a statement about anything but what this session was"""
    expected = (session.key, session.session.encode(), session.served, audit_draw.commitment(secret))
    if (statement.server, statement.session, statement.served, statement.draw) != expected:
        raise MalformedMessage("a statement of other work")
    if not work_statement.is_signed(statement) or statement.positions < session.positions:
        raise MalformedMessage("a statement that is not signed, or leaves work out")
    return statement
