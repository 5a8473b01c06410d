"""The evidence behind a VERDICT: what a stranger needs to see that it is not made up, and to compute it again.

A case against a server has the chunks that convict it, with their inputs and outputs and all reports about them; one
for it has the statement and reports alone. Its hash stands in the VERDICT, and whoever judged keeps it for others to
ask for. Signatures show that these auditors said so, not that they are right: whoever doubts computes again.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage

from . import audit_draw, audit_evidence, audit_report, work_statement
from .audit_evidence import Unproven, audited_hash, proven
from .audit_report import AuditReport, is_consistent, is_signed, judged
from .audit_threshold import Finding
from .bodies import Count, Hash, Verdict
from .sequential_test import Suspicion
from .work_statement import MAX_STATEMENT_BYTES, WorkStatement

MAX_CASE_BYTES = 30 << 20  # one frame
MOST_CHUNKS = 64
OF_SESSION = 0  # a kind of VERDICT
SOUND, FALSE = 0, 1  # outcomes of one


class CaseChunk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """evidence: encoded `ChunkEvidence`, b"" in a case for the server"""

    index: Count
    reports: Annotated[tuple[bytes, ...], Meta(max_length=16)]
    evidence: bytes


class AuditCase(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All chunks are of one statement: whoever picks from a thousand sessions finds two flipped bits."""

    statement: Annotated[bytes, Meta(max_length=MAX_STATEMENT_BYTES)]
    secret: Hash  # what the draw follows from
    chunks: Annotated[tuple[CaseChunk, ...], Meta(min_length=1, max_length=MOST_CHUNKS)]


_codec = Canonical(AuditCase, "a case", MAX_CASE_BYTES)


def encode(case: AuditCase) -> bytes:
    return _codec.encode(case)


def decode(data: bytes) -> AuditCase:
    """Says nothing about what it proves. raises: MalformedMessage, whatever the bytes are"""
    return _codec.decode(data)


def hash_of(data: bytes) -> bytes:
    """data: encoded; 32 bytes for the VERDICT."""
    return hashlib.sha256(b"shoal/1/audit-case\0" + data).digest()


def chunk(index: int, reports: Iterable[AuditReport], evidence: bytes) -> CaseChunk:
    return CaseChunk(index, tuple(map(audit_report.encode, reports)), evidence)


def case_for(statement: WorkStatement, secret: bytes, chunks: Iterable[CaseChunk]) -> AuditCase:
    """chunks: all that were audited of the statement, each found sound"""
    shown = tuple(msgspec.structs.replace(each, evidence=b"") for each in chunks)
    return AuditCase(work_statement.encode(statement), secret, shown[:MOST_CHUNKS])


def case_against(
    statement: WorkStatement, secret: bytes, found: Mapping[int, tuple[Finding, CaseChunk]]
) -> AuditCase | None:
    """The shortest case that convicts; None when what was found of this statement does not suffice, or is too large.

    found: by index, what was audited of the statement
    """
    shown: dict[int, CaseChunk] = {}
    for index, (finding, each) in sorted(found.items()):
        if finding is not Finding.SOUND:
            shown[index] = each
        if convicts(statement, {i: found[i][0] for i in shown}):
            size = sum(len(each.evidence) + sum(map(len, each.reports)) for each in shown.values())
            fits = len(shown) <= MOST_CHUNKS and size < MAX_CASE_BYTES - (1 << 16)
            return AuditCase(work_statement.encode(statement), secret, tuple(shown.values())) if fits else None
    return None


def verdict_of(case: AuditCase, outcome: int) -> Verdict:
    statement = work_statement.decode(case.statement)
    named = audited_hash(statement, case.chunks[0].index)
    return Verdict(statement.server, OF_SESSION, named, outcome, hash_of(encode(case)))


@dataclass(frozen=True, slots=True)
class Examined:
    """problem: why the case does not bear the verdict, or ""; auditors: keys of those who found what it says"""

    problem: str
    auditors: frozenset[bytes] = frozenset()
    chunks: int = 0


def examined(data: bytes, verdict: Verdict) -> Examined:
    """Look at a case as a stranger: every signature, every hash, and whether the findings suffice."""
    if hash_of(data) != verdict.evidence:
        return Examined("these are other bytes than the verdict names")
    try:
        case = decode(data)
        statement = work_statement.decode(case.statement)
        _check_statement(case, statement, verdict.subject)
        found = {each.index: _finding(statement, each) for each in case.chunks}
    except (MalformedMessage, Unproven) as error:
        return Examined(str(error))
    if verdict.audited != audited_hash(statement, case.chunks[0].index) or len(found) != len(case.chunks):
        return Examined("the case is about something else")
    findings = {index: finding for index, (finding, _) in found.items()}
    if verdict.outcome == SOUND and set(findings.values()) != {Finding.SOUND}:
        return Examined("not all of it was found sound")
    if verdict.outcome == FALSE and not convicts(statement, findings):
        return Examined("what was found does not suffice to call the server false")
    if verdict.outcome == FALSE and convicts(statement, _without_last(findings)):
        return Examined("more is shown than it takes to call the server false")
    if verdict.outcome == FALSE and not all(each.evidence for each in case.chunks):
        return Examined("the work that was found false is not shown")
    return Examined("", frozenset(key for _, keys in found.values() for key in keys), len(found))


def convicts(statement: WorkStatement, findings: Mapping[int, Finding]) -> bool:
    """findings: by index; chunks that are not among them are taken to be sound, whether anybody looked or not"""
    suspicion = Suspicion()
    for index in range(statement.count):
        suspicion = suspicion.after(findings.get(index, Finding.SOUND))
        if suspicion.convicted:
            return True
    return False


def is_open(statement: WorkStatement, findings: Mapping[int, Finding], left: Iterable[int]) -> bool:
    """Whether it is still to be seen if the server is convicted, when the chunks of these indices are looked at too."""
    worst = dict.fromkeys(left, Finding.GROSS) | dict(findings)
    return not convicts(statement, findings) and convicts(statement, worst)


def _without_last(findings: Mapping[int, Finding]) -> dict[int, Finding]:
    last = max(findings)
    return {index: finding for index, finding in findings.items() if index != last}


def _check_statement(case: AuditCase, statement: WorkStatement, subject: bytes) -> None:
    """raises: Unproven"""
    if statement.server != subject or not work_statement.is_signed(statement):
        raise Unproven("a statement that the server did not sign")
    if audit_draw.commitment(case.secret) != statement.draw:
        raise Unproven("another secret than the one that the server signed for")


def _finding(statement: WorkStatement, each: CaseChunk) -> tuple[Finding, frozenset[bytes]]:
    """What one chunk's reports amount to, and who agrees. raises: Unproven, MalformedMessage"""
    if each.evidence:
        shown = audit_evidence.decode(each.evidence)
        if proven(shown) != statement or shown.index != each.index:
            raise Unproven("evidence of another chunk")
    reports = [audit_report.decode(data) for data in each.reports]
    name = audited_hash(statement, each.index)
    if not all(is_signed(r) and is_consistent(r) and r.audited == name for r in reports):
        raise Unproven("a report that is not signed, or about something else")
    judgement = judged(reports, statement.server)
    if judgement.finding is None:
        raise Unproven("the auditors do not agree")
    sound = judgement.finding is Finding.SOUND
    return judgement.finding, frozenset(r.auditor for r in reports if (r.finding == Finding.SOUND) == sound)
