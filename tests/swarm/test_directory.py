"""The book of records."""

import random

from hypothesis import given
from hypothesis import strategies as st
from swarm.people import MODEL, NOW, OWNER, hosted, person, private_swarm, public_swarm, record

from shoal.swarm.directory import RecordBook
from shoal.swarm.members.membership import Swarm
from shoal.swarm.members.revocation import Revocations, sign_list
from shoal.swarm.records import Hosted, RecordReader, sign_record
from shoal.swarm.units import Span

SWARM = public_swarm()


def book(swarm: Swarm = SWARM, capacity: int = 1000) -> RecordBook:
    return RecordBook(RecordReader(swarm, Revocations(swarm.id, swarm.owner)), capacity)


def signed(number: int, *spans: Hosted, swarm: Swarm = SWARM, **changes: object) -> bytes:
    made = record(person(number), swarm, *spans, **changes)  # type: ignore[arg-type]
    return sign_record(person(number), made)


@given(st.permutations(range(6)))
def test_the_newest_record_of_each_peer_stays_whatever_the_order(order: list[int]) -> None:
    records = [signed(number % 2, expires_at=NOW + 10 + number) for number in range(6)]
    known = book()
    for index in order:
        known.merge(records[index], NOW)
    assert sorted(r.expires_at for r in known.live(NOW)) == [NOW + 14, NOW + 15]


def test_a_replayed_older_record_changes_nothing() -> None:
    known = book()
    newer, older = signed(1, name="new", expires_at=NOW + 20), signed(1, name="old", expires_at=NOW + 12)
    assert known.merge(newer, NOW) is not None
    assert known.merge(older, NOW) is None
    assert known.merge(newer, NOW) is None
    assert [r.name for r in known.live(NOW)] == ["new"]


def test_expired_records_are_never_shown() -> None:
    known = book()
    known.merge(signed(1, expires_at=NOW + 5), NOW)
    assert len(known.live(NOW + 4.9)) == 1
    assert known.live(NOW + 5) == []
    assert known.of(person(1).peer_id, NOW + 5) is None
    assert known.merge(signed(2, expires_at=NOW - 1), NOW) is None
    known.prune(NOW + 5)
    assert len(known) == 0


def test_a_withdrawn_node_is_gone_and_its_older_record_cannot_bring_it_back() -> None:
    known = book()
    last = signed(1, expires_at=NOW + 10)
    known.merge(last, NOW)
    known.merge(signed(1, expires_at=NOW + 10.001, withdrawn=True), NOW)
    known.merge(last, NOW)
    assert known.live(NOW) == []
    known.merge(signed(1, expires_at=NOW + 18), NOW)
    assert len(known.live(NOW)) == 1


def test_a_revoked_peer_vanishes_at_once() -> None:
    swarm = private_swarm()
    revocations = Revocations(swarm.id, swarm.owner)
    known = RecordBook(RecordReader(swarm, revocations))
    for number in (1, 2):
        known.merge(signed(number, swarm=swarm), NOW)
    revocations.merge(sign_list(OWNER, swarm.id, 1, frozenset({person(1).peer_id})))
    assert [r.peer for r in known.live(NOW)] == [person(2).peer_id]
    assert known.page(NOW) == [signed(2, swarm=swarm)]


def test_holders_are_those_with_a_part_of_the_model() -> None:
    known = book()
    known.merge(signed(1), NOW)
    known.merge(signed(2, hosted(Span(0, 3))), NOW)
    known.merge(signed(3, hosted(Span(0, 3), model="f" * 64)), NOW)
    assert [r.peer for r in known.holders(MODEL, NOW)] == [person(2).peer_id]


def test_a_full_book_takes_no_newcomers_until_somebody_expires() -> None:
    known = book(capacity=3)
    for number in range(3):
        assert known.merge(signed(number, expires_at=NOW + 10 + number), NOW)
    assert known.merge(signed(3), NOW) is None
    assert known.merge(signed(0, expires_at=NOW + 20), NOW)  # known peers are always renewed
    assert known.merge(signed(3, expires_at=NOW + 30), NOW + 12)
    assert len(known) <= 3


def test_pages_hand_on_every_live_record_once() -> None:
    known = book()
    records = [signed(number, hosted(Span(0, 8))) for number in range(40)]
    random.Random(3).shuffle(records)
    known.merge_all(records, NOW)
    copy, after, pages = book(), "", 0
    while page := known.page(NOW, after, max_bytes=2048):
        assert sum(map(len, page)) <= 2048
        merged = copy.merge_all(page, NOW)
        assert len(merged) == len(page)
        after, pages = merged[-1].peer, pages + 1
    assert pages > 5
    assert copy.live(NOW) == known.live(NOW)
    assert len(copy) == 40


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_rubbish_never_enters(many: list[bytes]) -> None:
    known = book()
    assert known.merge_all(many, NOW) == []
    assert known.live(NOW) == []
