"""The evidence behind a verdict, as a stranger reads it."""

import random

import msgspec
import pytest
from incentives.case_samples import AUDITORS, CHUNKS, LIMIT, SERVER, STATEMENT, against, chunk, praise
from incentives.work_samples import CLIENT, signed

from shoal.incentives import audit_case, audit_report
from shoal.incentives.audit_case import FALSE, SOUND, AuditCase, examined, verdict_of
from shoal.incentives.audit_evidence import audited_hash
from shoal.incentives.audit_threshold import Finding
from shoal.incentives.bodies import Verdict


def bears_out(case: AuditCase, outcome: int) -> str:
    return examined(audit_case.encode(case), verdict_of(case, outcome)).problem


def test_a_stranger_sees_that_a_server_was_found_false_and_by_whom() -> None:
    case = against(1, 2)
    assert case is not None
    seen = examined(audit_case.encode(case), verdict_of(case, FALSE))
    assert (seen.problem, seen.chunks) == ("", 2)
    assert seen.auditors == {each.public_key for each in AUDITORS[:3]}
    assert verdict_of(case, FALSE).subject == SERVER.public_key


def test_one_false_chunk_makes_no_case_and_neither_do_two_that_lie_far_apart() -> None:
    assert against(1) is None
    found = {0: Finding.GROSS, 100: Finding.GROSS}
    long = msgspec.structs.replace(STATEMENT, count=200)
    assert not audit_case.convicts(long, found)
    assert audit_case.convicts(long, {0: Finding.GROSS, 1: Finding.GROSS})


def test_a_case_for_a_server_shows_nothing_of_the_session() -> None:
    case = praise()
    assert bears_out(case, SOUND) == ""
    assert len(audit_case.encode(case)) < 1500
    assert bears_out(case, FALSE) != ""


def test_a_flipped_bit_anywhere_in_a_case_leaves_none() -> None:
    case = against(0, 1)
    assert case is not None
    data, verdict = audit_case.encode(case), verdict_of(case, FALSE)
    draw = random.Random(5)
    for _ in range(400):
        at = draw.randrange(len(data) * 8)
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        assert examined(bytes(flipped), verdict).problem, at
        body = msgspec.structs.replace(verdict, evidence=audit_case.hash_of(bytes(flipped)))
        assert examined(bytes(flipped), body).problem, "with a hash made for it, too"


def made_up(**changes: object) -> AuditCase:
    case = against(0, 1)
    assert case is not None
    return msgspec.structs.replace(case, **changes)


def test_a_client_cannot_make_a_case_of_its_own_word() -> None:
    """A lying client: its own report alone, the same one twice, one by the server, or statements it has signed."""
    name = audited_hash(STATEMENT, 0)
    lone = audit_report.write(CLIENT, name, 1.0, LIMIT.limit, 0, Finding.GROSS)
    own = audit_report.write(SERVER, name, 1.0, LIMIT.limit, 0, Finding.GROSS)
    for voices in ([lone], [lone, lone], [lone, own]):
        alone = [audit_case.chunk(n, voices, chunk(n, 1.0).evidence) for n in (0, 1)]
        assert bears_out(made_up(chunks=tuple(alone)), FALSE)
    _, leaves = signed(CHUNKS)
    forged = leaves.statement(CLIENT, b"session", STATEMENT.served, STATEMENT.draw)
    verdict = msgspec.structs.replace(verdict_of(made_up(), FALSE), subject=SERVER.public_key)
    body = audit_case.encode(made_up(statement=audit_case.work_statement.encode(forged)))
    assert examined(body, msgspec.structs.replace(verdict, evidence=audit_case.hash_of(body))).problem
    assert bears_out(made_up(secret=bytes(32)), FALSE)


def test_a_case_with_nothing_to_compute_again_or_about_another_chunk_is_none() -> None:
    case = made_up()
    hidden = tuple(msgspec.structs.replace(each, evidence=b"") for each in case.chunks)
    assert "not shown" in bears_out(made_up(chunks=hidden), FALSE)
    swapped = (msgspec.structs.replace(case.chunks[0], evidence=case.chunks[1].evidence), case.chunks[1])
    assert bears_out(made_up(chunks=swapped), FALSE)
    doubled = (case.chunks[0], case.chunks[0])
    assert bears_out(made_up(chunks=doubled), FALSE)


@pytest.mark.parametrize("data", [b"", b"\xc0", bytes(100)])
def test_any_bytes_are_a_case_or_a_problem(data: bytes) -> None:
    body = Verdict(SERVER.public_key, 0, bytes(32), FALSE, audit_case.hash_of(data))
    assert examined(data, body).problem
