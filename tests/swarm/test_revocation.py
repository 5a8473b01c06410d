"""Revocation lists: signed by the owner, the newest wins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.people import OWNER, person, private_swarm

from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.members.revocation import MAX_LIST_BYTES, Revocations, read_list, sign_list

SWARM = private_swarm()
ALICE, BOB = person(1).peer_id, person(2).peer_id


def fresh() -> Revocations:
    return Revocations(SWARM.id, SWARM.owner)


def test_the_newest_list_wins_in_any_order() -> None:
    first = sign_list(OWNER, SWARM.id, 1, frozenset({ALICE}))
    second = sign_list(OWNER, SWARM.id, 2, frozenset({BOB}))
    for order in ([first, second], [second, first], [second, second, first]):
        known = fresh()
        for data in order:
            known.merge(data)
        assert (known.version, known.peers, known.encoded) == (2, frozenset({BOB}), second)
        assert known.revokes(BOB)
        assert not known.revokes(ALICE)


def test_a_serial_is_revoked_without_its_peer() -> None:
    known = fresh()
    assert known.merge(sign_list(OWNER, SWARM.id, 1, frozenset(), frozenset({"abc"})))
    assert known.revokes(ALICE, "abc")
    assert not known.revokes(ALICE, "abd")
    assert not known.revokes(ALICE)


def test_lists_by_others_or_of_other_swarms_change_nothing() -> None:
    known = fresh()
    good = sign_list(OWNER, SWARM.id, 1, frozenset({ALICE}))
    assert not known.merge(sign_list(person(5), SWARM.id, 9, frozenset({BOB})))
    assert not known.merge(sign_list(OWNER, private_swarm(2).id, 9, frozenset({BOB})))
    assert not known.merge(sign_list(OWNER, SWARM.id, 0, frozenset({BOB})))
    assert not known.merge(sign_list(OWNER, SWARM.id, -3, frozenset({BOB})))
    assert known.version == 0
    assert known.merge(good)
    assert not known.merge(good)


def test_a_list_that_cannot_travel_is_not_signed() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        sign_list(OWNER, SWARM.id, 1, frozenset(person(0).peer_id + str(i) for i in range(2000)))  # type: ignore[misc]


def test_a_thousand_revoked_peers_fit() -> None:
    peers = frozenset(person(number).peer_id for number in range(1000))
    assert len(sign_list(OWNER, SWARM.id, 1, peers)) <= MAX_LIST_BYTES


@given(st.data())
def test_a_list_with_any_byte_changed_is_refused(data: st.DataObject) -> None:
    good = sign_list(OWNER, SWARM.id, 3, frozenset({ALICE}))
    at = data.draw(st.integers(0, len(good) - 1))
    bent = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    with pytest.raises((MalformedMessage, Refused)):
        read_list(bent, SWARM.id, SWARM.owner)
    assert not fresh().merge(bent)
