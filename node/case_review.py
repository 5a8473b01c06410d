"""Somebody else's case against a server, computed again by others than the accuser, no further than it can matter.

A case is the shortest that convicts (`audit_case.examined` sees to that), so without its last chunk it does not. The
chunks are therefore looked at from the last one on, and when what is left could not convict any more, or what was found
does already, nobody computes further: an invented case costs one chunk.
"""

import secrets
from dataclasses import dataclass

from shoal.incentives import audit_case, audit_report
from shoal.incentives.audit_case import AuditCase, CaseChunk
from shoal.incentives.audit_report import AuditReport, is_clear, judged
from shoal.incentives.audit_threshold import Finding
from shoal.incentives.work_statement import WorkStatement
from shoal.swarm.identifiers import PeerId

from .audit_driver import AuditDriver


@dataclass(frozen=True, slots=True)
class Review:
    """own: the case that follows from what was found here, None when it convicts nobody
    refuted: whether all that was looked at is clearly sound, as more than one says
    settled: whether each chunk that was looked at could be judged
    """

    own: AuditCase | None
    findings: tuple[Finding, ...]
    refuted: bool
    settled: bool


async def reviewed(
    driver: AuditDriver, case: AuditCase, statement: WorkStatement, accuser: PeerId, me: bytes
) -> Review:
    """me: the own key"""
    secret, found = secrets.token_bytes(32), dict[int, tuple[Finding, CaseChunk]]()
    left = sorted(case.chunks, key=lambda each: each.index)
    settled = refuted = True
    while left and audit_case.is_open(statement, {i: f for i, (f, _) in found.items()}, [c.index for c in left]):
        each = left.pop()
        reports = await driver.reports(
            statement.served, statement, each.index, each.evidence, secret, {accuser}, jury=True
        )
        if [report.auditor for report in reports] == [me]:  # nobody else is left to be asked
            reports += _others(each, me)
        judgement = judged(reports, statement.server)
        driver.learn(reports, judgement)
        if judgement.finding is None:
            settled = refuted = False
            continue
        found[each.index] = judgement.finding, audit_case.chunk(each.index, reports, each.evidence)
        refuted = refuted and judgement.finding is Finding.SOUND and len(reports) > 1 and is_clear(reports)
    own = audit_case.case_against(statement, case.secret, found)
    return Review(own, tuple(finding for finding, _ in found.values()), refuted and bool(found), settled)


def _others(each: CaseChunk, me: bytes) -> list[AuditReport]:
    """What the case itself says that others found."""
    return [report for report in map(audit_report.decode, each.reports) if report.auditor != me]
