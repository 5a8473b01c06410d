import random

import msgspec
import pytest
from incentives.work_samples import MIDDLE, SECRET, SERVER, STRANGER, evidence, session, signed

from shoal.incentives import audit_evidence, work_statement
from shoal.incentives.audit_draw import commitment
from shoal.incentives.audit_evidence import Unproven, audited_hash, decode, encode, of_chunk, proven
from shoal.swarm.errors import MalformedMessage


@pytest.mark.parametrize("feeds", range(1, 6))
def test_chunks_do_not_depend_on_how_a_session_was_fed(feeds: int) -> None:
    assert session(100, feeds) == session(100)
    assert [chunk.count for chunk in session(100)] == [32, 32, 32, 4]


def test_every_chunk_of_a_session_can_be_shown_to_a_stranger() -> None:
    chunks = session(32 * 5 + 7)
    statement, leaves = signed(chunks)
    for index in range(6):
        shown = decode(encode(of_chunk(statement, leaves, chunks, index)))
        assert proven(shown) == statement
        assert shown.made == chunks[index].made


def test_a_flipped_bit_anywhere_in_the_evidence_leaves_none() -> None:
    data = encode(evidence())
    assert proven(decode(data)).server == SERVER.public_key
    draw = random.Random(3)
    places = range(len(data)) if len(data) < 4000 else draw.sample(range(len(data)), 4000)
    for place in places:
        broken = bytearray(data)
        broken[place] ^= 1 << draw.randrange(8)
        with pytest.raises((MalformedMessage, Unproven)):
            proven(decode(bytes(broken)))


def test_an_auditor_cannot_invent_inputs_outputs_or_places() -> None:
    shown, other = evidence(), evidence(index=1)
    chunks = session(100, seed=9)
    inventions = (
        {"made": chunks[2].made},
        {"inputs": tuple(c.given for c in chunks[:3])},
        {"inputs": shown.inputs[:2]},
        {"index": 1, "inputs": shown.inputs[:2]},
        {"made": other.made},
        {"path": other.path},
        {"path": ()},
        {"count": 31},
    )
    for change in inventions:
        with pytest.raises(Unproven):
            proven(msgspec.structs.replace(shown, **change))


def test_nobody_signs_for_another_and_no_field_of_a_statement_can_be_changed() -> None:
    statement, _ = signed(session(100))
    assert work_statement.is_signed(statement)
    changes: tuple[dict[str, object], ...] = (
        {"server": STRANGER.public_key},
        {"server": bytes(32)},
        {"session": b"other"},
        {"served": msgspec.structs.replace(MIDDLE, dtype="bfloat16")},
        {"draw": commitment(bytes(32))},
        {"sampling": b"x"},
        {"count": 5},
        {"positions": 101},
        {"root": bytes(32)},
        {"signature": bytes(64)},
    )
    for change in changes:
        assert not work_statement.is_signed(msgspec.structs.replace(statement, **change)), change


def test_a_server_that_sent_something_else_is_at_odds_with_the_next_hop() -> None:
    """The next hop signs for what came in; the halves of two neighbours' leaves are over the same bytes."""
    chunks = session(64)
    received = [msgspec.structs.replace(c.given, hidden=c.made.hidden) for c in chunks]
    altered = bytearray(received[1].hidden)
    altered[-1] ^= 1
    flipped = [received[0], msgspec.structs.replace(received[1], hidden=bytes(altered))]
    assert work_statement.inputs_hash(received) != work_statement.inputs_hash(flipped)
    assert work_statement.inputs_hash(received[:1]) == work_statement.inputs_hash(flipped[:1])


def test_a_chunk_has_one_name_whoever_audits_it() -> None:
    statement, _ = signed(session(100))
    resigned = msgspec.structs.replace(statement, signature=bytes(64))
    assert audited_hash(statement, 1) == audited_hash(resigned, 1) != audited_hash(statement, 2)


def test_statements_are_small() -> None:
    statement, _ = signed(session(3200), SECRET, b"s" * 32)
    assert len(work_statement.encode(statement)) <= 320
    assert audit_evidence.MAX_STATEMENT_BYTES >= 320
