"""Cases about a small session of `work_samples`, for and against its server."""

from incentives.work_samples import SECRET, SERVER, session, signed

from shoal.incentives import audit_case, audit_evidence, audit_report
from shoal.incentives.audit_case import AuditCase, CaseChunk, case_against, case_for
from shoal.incentives.audit_evidence import audited_hash, of_chunk
from shoal.incentives.audit_report import AuditReport
from shoal.incentives.audit_threshold import Finding, Threshold
from shoal.swarm.identity import Identity

__all__ = ["SERVER"]
AUDITORS = [Identity(bytes([40 + n]) * 32) for n in range(4)]
LIMIT = Threshold(0.01, 1000, 0.008)
CHUNKS = session(150)
STATEMENT, LEAVES = signed(CHUNKS)


def reports(index: int, *distances: float) -> list[AuditReport]:
    name = audited_hash(STATEMENT, index)
    found = [(d, LIMIT.finding(d)) for d in distances]
    return [audit_report.write(AUDITORS[n], name, d, LIMIT.limit, 0, f) for n, (d, f) in enumerate(found)]


def chunk(index: int, *distances: float) -> CaseChunk:
    evidence = audit_evidence.encode(of_chunk(STATEMENT, LEAVES, CHUNKS, index))
    return audit_case.chunk(index, reports(index, *distances), evidence)


def against(*indexes: int) -> AuditCase | None:
    """None when these chunks do not suffice."""
    found = {n: (Finding.SOUND, chunk(n, 0.001)) for n in range(STATEMENT.count)}
    found |= {n: (Finding.GROSS, chunk(n, 1.0, 1.1, 0.9)) for n in indexes}
    return case_against(STATEMENT, SECRET, found)


def praise() -> AuditCase:
    return case_for(STATEMENT, SECRET, [chunk(0, 0.001), chunk(3, 0.002)])
