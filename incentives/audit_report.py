"""What one auditor found when it computed a chunk again, signed; and what several of them amount to.

A finding against a server counts only when the majority of the independent re-executions share it; until then the
accuser is one voice. Sound findings are looked at again now and then (SECOND_LOOK), or an auditor that waves
everything through would never be found. Who stands against a clear majority has computed wrongly, and that counts
against its own standing as a false chunk of its own would.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.swarm import identity
from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identity import Identity

from .audit_threshold import GROSS, Finding
from .bodies import Hash, Key, Signature
from .entry import peer_of

DOMAIN = "ledger-audit"
UNIT = 2**-40  # of distances on the wire
MOST = 2**53
GREY = 1.2  # a distance within this factor of a limit may honestly be found on either side of it
SECOND_LOOK = 0.1  # share of the sound findings that the next auditor repeats
Distance = Annotated[int, Meta(ge=0, le=MOST)]


class AuditReport(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """distance, limit: in units of UNIT; MOST for what is not finite"""

    auditor: Key
    audited: Hash
    distance: Distance
    limit: Distance
    wrong_tokens: Annotated[int, Meta(ge=0, le=255)]
    finding: Annotated[int, Meta(ge=0, le=2)]  # `Finding`
    signature: Signature


_codec = Canonical(AuditReport, "an audit report", 512)


def write(auditor: Identity, audited: bytes, distance: float, limit: float, wrong: int, found: Finding) -> AuditReport:
    blank = AuditReport(
        auditor.public_key, audited, _in_units(distance), _in_units(limit), wrong, int(found), bytes(64)
    )
    return msgspec.structs.replace(blank, signature=auditor.sign(DOMAIN, _message(blank)))


def encode(report: AuditReport) -> bytes:
    return _codec.encode(report)


def decode(data: bytes) -> AuditReport:
    """raises: MalformedMessage, whatever the bytes are"""
    return _codec.decode(data)


def is_signed(report: AuditReport) -> bool:
    try:
        return identity.verify(peer_of(report.auditor), DOMAIN, _message(report), report.signature)
    except MalformedMessage:
        return False


@dataclass(frozen=True, slots=True)
class Judgement:
    """finding: None while the re-executions do not agree. dissenters: keys of those who stand against the majority"""

    finding: Finding | None
    dissenters: frozenset[bytes]


def judged(reports: Sequence[AuditReport], server: bytes) -> Judgement:
    """reports: on one chunk, signatures checked. Of several by one auditor none counts; nobody judges himself.

    A single report decides only that a chunk is sound. Against a server it takes two, and more than half of all.
    """
    authors = [report.auditor for report in reports]
    counted = [r for r in reports if authors.count(r.auditor) == 1 and r.auditor != server]
    if len(counted) == 1 and counted[0].finding == Finding.SOUND:
        return Judgement(Finding.SOUND, frozenset())
    against = [r for r in counted if r.finding != Finding.SOUND]
    for_it = [r for r in counted if r.finding == Finding.SOUND]
    if len(counted) < 2 or len(against) == len(for_it):
        return Judgement(None, frozenset())
    most, fewest = (against, for_it) if len(against) > len(for_it) else (for_it, against)
    clear = len(most) >= 2 and is_clear(most)
    dissenters = frozenset(r.auditor for r in fewest) if clear else frozenset()
    if most is for_it:
        return Judgement(Finding.SOUND, dissenters)
    gross = [r for r in against if r.finding == Finding.GROSS]
    return Judgement(Finding.GROSS if 2 * len(gross) > len(against) else Finding.FAR, dissenters)


def is_clear(reports: Sequence[AuditReport]) -> bool:
    """Whether rounding alone could not have led an honest auditor to the other side of the limit.

    reports: of the majority only; a liar could call any distance near to a limit of his own
    """
    distance = median_low(max(1, report.distance) for report in reports)
    limit = median_low(max(1, report.limit) for report in reports)
    return max(distance, limit) >= GREY * min(distance, limit)


def _in_units(distance: float) -> int:
    scaled = distance / UNIT
    return int(scaled) if 0 <= scaled < MOST else MOST


def is_consistent(report: AuditReport) -> bool:
    """Whether the finding follows from the report's own numbers (tokens can only make it worse)."""
    by_distance = 2 if report.distance > GROSS * report.limit else 1 if report.distance > report.limit else 0
    return report.finding >= by_distance and (report.wrong_tokens > 0 or report.finding == by_distance)


def _message(report: AuditReport) -> bytes:
    return _codec.encode(msgspec.structs.replace(report, signature=bytes(64)))
