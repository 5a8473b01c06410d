"""Records: any bytes become a valid record of our swarm, or are refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.people import (
    MODEL,
    NOW,
    OWNER,
    certificate,
    hosted,
    person,
    plain_record,
    private_swarm,
    public_swarm,
    record,
)

from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.members.membership import Swarm
from shoal.swarm.members.revocation import Revocations, sign_list
from shoal.swarm.records import (
    CLOCK_SLACK_S,
    MAX_ADDRESSES,
    MAX_HOSTED,
    MAX_RECORD_BYTES,
    NodeRecord,
    RecordReader,
    SignedRecord,
    sign_record,
)
from shoal.swarm.units import Span

SWARM = public_swarm()
ALICE, BOB = person(1), person(2)


def reader(swarm: Swarm = SWARM) -> RecordReader:
    return RecordReader(swarm, Revocations(swarm.id, swarm.owner))


def forged(made: NodeRecord, signer: int = 1) -> bytes:
    """A record signed without the checks that `sign_record` makes."""
    body = msgspec.msgpack.encode(made, order="deterministic")
    return msgspec.msgpack.encode(SignedRecord(body, person(signer).sign("record", body)))


@pytest.mark.parametrize("swarm", [SWARM, private_swarm()], ids=["public", "private"])
def test_a_record_comes_back_and_is_small(swarm: Swarm) -> None:
    made = record(ALICE, swarm, hosted(Span(0, 3)), hosted(Span(3, 8)), rtt_ms={BOB.peer_id: 12.5})
    data = sign_record(ALICE, made)
    assert reader(swarm).read(data, NOW) == made
    assert len(data) < 1200


def test_the_largest_allowed_record_is_still_signed_or_named_too_large() -> None:
    many = tuple(f"/ip4/10.0.0.{i}/tcp/4001" for i in range(MAX_ADDRESSES))
    made = record(ALICE, SWARM, *(hosted(Span(0, 8)) for _ in range(MAX_HOSTED)), addresses=many)
    assert len(sign_record(ALICE, made)) <= MAX_RECORD_BYTES
    long_names = msgspec.structs.replace(
        made, hosted=tuple(msgspec.structs.replace(h, name="x" * 500) for h in made.hosted)
    )
    with pytest.raises(ValueError, match="at most 4096 may travel"):
        sign_record(ALICE, long_names)


BROKEN: dict[str, NodeRecord] = {
    "another peer's": record(BOB, SWARM),
    "no peer id": plain_record("somebody", swarm=SWARM.id),
    "no name": record(ALICE, SWARM, name=""),
    "long name": record(ALICE, SWARM, name="x" * 65),
    "terminal codes": record(ALICE, SWARM, name="a\x1b[2J"),
    "line break in version": record(ALICE, SWARM, version="1\n2"),
    "many addresses": record(ALICE, SWARM, addresses=("/ip4/1.1.1.1/tcp/1",) * 13),
    "long address": record(ALICE, SWARM, addresses=("/" + "x" * 300,)),
    "no address": record(ALICE, SWARM, addresses=("host:80",)),
    "many spans": record(ALICE, SWARM, *[hosted(Span(0, 1))] * 9),
    "span outside": record(ALICE, SWARM, hosted(Span(0, 9))),
    "no model id": record(ALICE, SWARM, hosted(Span(0, 1), model="abc")),
    "negative step": record(ALICE, SWARM, hosted(Span(0, 1), step_ms=-1.0)),
    "step that is no number": record(ALICE, SWARM, hosted(Span(0, 1), step_ms=float("nan"))),
    "endless step": record(ALICE, SWARM, hosted(Span(0, 1), step_ms=float("inf"))),
    "negative queue": record(ALICE, SWARM, hosted(Span(0, 1), queue=-1)),
    "negative round trip": record(ALICE, SWARM, rtt_ms={BOB.peer_id: -5.0}),
    "many round trips": record(ALICE, SWARM, rtt_ms={person(i).peer_id: 1.0 for i in range(9)}),
    "never expires": record(ALICE, SWARM, expires_at=float("inf")),
    "no time": record(ALICE, SWARM, expires_at=float("nan")),
    "many layers": record(ALICE, SWARM, hosted(Span(0, 1), layers=10**9)),
}


@pytest.mark.parametrize("made", BROKEN.values(), ids=BROKEN)
def test_a_record_that_breaks_a_limit_is_neither_signed_nor_read(made: NodeRecord) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        sign_record(ALICE, made)
    with pytest.raises(MalformedMessage):
        reader().read(forged(made), NOW)


def test_a_record_of_another_swarm_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="another swarm"):
        reader().read(sign_record(ALICE, record(ALICE, private_swarm())), NOW)


def test_a_record_in_another_form_is_refused() -> None:
    body = msgspec.msgpack.encode(record(ALICE, SWARM))  # fields in another order than canonical would be fine, but:
    padded = body.replace(b"\xa8protocol\x01", b"\xa8protocol\xcc\x01")
    assert padded != body
    with pytest.raises(MalformedMessage, match="canonical"):
        reader().read(msgspec.msgpack.encode(SignedRecord(padded, ALICE.sign("record", padded))), NOW)


def test_a_lifetime_beyond_the_cap_is_refused_whatever_the_clocks() -> None:
    data = sign_record(ALICE, record(ALICE, SWARM, expires_at=NOW + 24))
    read = reader()
    assert read.read(data, NOW - CLOCK_SLACK_S)
    with pytest.raises(MalformedMessage, match="too far in the future"):
        read.read(data, NOW - CLOCK_SLACK_S - 1)
    assert read.read(data, NOW)


def test_a_private_swarm_takes_records_of_members_only_and_forgets_nobody_revoked() -> None:
    swarm = private_swarm()
    read = reader(swarm)
    data = sign_record(ALICE, record(ALICE, swarm))
    assert read.read(data, NOW)
    for wrong in (b"", certificate(swarm, BOB), certificate(swarm, ALICE, NOW - 10, 5.0)):
        with pytest.raises(Refused):
            read.read(sign_record(ALICE, record(ALICE, swarm, certificate=wrong)), NOW)
    read.revocations.merge(sign_list(OWNER, swarm.id, 1, frozenset({ALICE.peer_id})))
    with pytest.raises(Refused, match="revoked"):
        read.read(data, NOW)  # although its signature was checked before


@given(st.data())
def test_a_record_with_any_byte_changed_is_refused(data: st.DataObject) -> None:
    good = sign_record(ALICE, record(ALICE, SWARM, hosted(Span(0, 3))))
    at = data.draw(st.integers(0, len(good) - 1))
    bent = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    with pytest.raises(MalformedMessage):
        reader().read(bent, NOW)


@given(st.binary(max_size=5000))
def test_any_bytes_are_refused_with_the_one_error(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        reader().read(data, NOW)


@given(st.binary(max_size=300))
def test_any_signed_bytes_are_refused_with_the_one_error(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        reader().read(msgspec.msgpack.encode(SignedRecord(body, ALICE.sign("record", body))), NOW)


def test_reading_again_is_cheap_and_gives_the_same_record() -> None:
    read = reader()
    data = sign_record(ALICE, record(ALICE, SWARM))
    assert read.read(data, NOW) is read.read(bytes(bytearray(data)), NOW)


def test_the_model_of_these_tests_is_a_model_id() -> None:
    assert len(MODEL) == 64
