import random

import msgspec
import pytest
from incentives.work_samples import SERVER

from shoal.incentives.audit_report import (
    MOST,
    AuditReport,
    decode,
    encode,
    is_consistent,
    is_signed,
    judged,
    write,
)
from shoal.incentives.audit_threshold import Finding, Threshold
from shoal.incentives.sequential_test import Suspicion
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identity import Identity

AUDITORS = [Identity(bytes([40 + n]) * 32) for n in range(5)]
CHUNK = bytes([9]) * 32
LIMIT = Threshold(0.01, 1000, 0.008)


def report(number: int, distance: float, says: Finding | None = None) -> AuditReport:
    found = LIMIT.finding(distance) if says is None else says
    return write(AUDITORS[number], CHUNK, distance, LIMIT.limit, 0, found)


def reports(*measured: float) -> list[AuditReport]:
    return [report(number, distance) for number, distance in enumerate(measured)]


def keys(*numbers: int) -> set[bytes]:
    return {AUDITORS[number].public_key for number in numbers}


def test_one_voice_against_a_server_decides_nothing() -> None:
    assert judged(reports(1.4), SERVER.public_key).finding is None
    assert judged(reports(0.002), SERVER.public_key).finding is Finding.SOUND


def test_a_lying_accuser_stands_alone_and_loses_standing() -> None:
    judgement = judged(reports(1.4, 0.002, 0.002, 0.003), SERVER.public_key)
    assert judgement.finding is Finding.SOUND
    assert judgement.dissenters == keys(0)
    standing = Suspicion()
    for _ in range(2):  # a dissent is a gross finding about the auditor's own computation
        standing = standing.after(Finding.GROSS)
    assert standing.convicted


def test_an_auditor_that_waves_garbage_through_stands_alone_too() -> None:
    judgement = judged(reports(0.002, 1.4, 1.4, 1.3), SERVER.public_key)
    assert judgement.finding is Finding.GROSS
    assert judgement.dissenters == keys(0)


def test_two_against_two_decide_nothing_and_cost_nobody_anything() -> None:
    judgement = judged(reports(1.4, 1.4, 0.001, 0.001), SERVER.public_key)
    assert judgement.finding is None
    assert not judgement.dissenters


def test_who_measured_near_the_limit_is_no_liar() -> None:
    judgement = judged(reports(0.0099, 0.0101, 0.0102), SERVER.public_key)
    assert judgement.finding is Finding.FAR
    assert not judgement.dissenters


def test_nobody_judges_himself_or_votes_twice() -> None:
    own = write(SERVER, CHUNK, 0.001, LIMIT.limit, 0, Finding.SOUND)
    twice = [report(0, 1.4), report(0, 1.3)]
    assert judged([own], SERVER.public_key).finding is None
    assert judged([*twice, report(1, 1.4)], SERVER.public_key).finding is None
    assert judged([own, report(0, 1.4), report(1, 1.4)], SERVER.public_key).finding is Finding.GROSS


def test_a_finding_has_to_follow_from_its_own_numbers() -> None:
    assert is_consistent(report(0, 0.002))
    assert is_consistent(report(0, 0.02))
    assert is_consistent(report(0, 1.4))
    assert not is_consistent(report(0, 0.002, Finding.GROSS))
    assert not is_consistent(report(0, 1.4, Finding.SOUND))
    assert report(0, float("inf")).distance == report(0, float("nan")).distance == MOST


def test_reports_are_signed_byte_for_byte() -> None:
    data = encode(report(0, 0.002))
    assert is_signed(decode(data))
    draw = random.Random(5)
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << draw.randrange(8)
        try:
            assert not is_signed(decode(bytes(broken)))
        except MalformedMessage:
            continue


@pytest.mark.parametrize("field", ["auditor", "audited"])
def test_a_report_is_of_one_auditor_on_one_chunk(field: str) -> None:
    assert not is_signed(msgspec.structs.replace(report(0, 0.1), **{field: AUDITORS[1].public_key}))
