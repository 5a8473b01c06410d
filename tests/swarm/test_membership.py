"""Certificates and the guard at the door."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.people import NOW, OWNER, certificate, person, private_swarm, public_swarm

from shoal.swarm.errors import Refused
from shoal.swarm.members.membership import MembershipGuard, Swarm, check_certificate, found_swarm, issue
from shoal.swarm.members.revocation import Revocations, sign_list

SWARM = private_swarm()
ALICE, BOB = person(1), person(2)


def revocations(swarm: Swarm = SWARM, *, peers: frozenset[str] = frozenset(), version: int = 1) -> Revocations:
    known = Revocations(swarm.id, swarm.owner)
    if peers:
        known.merge(sign_list(OWNER, swarm.id, version, peers))  # type: ignore[arg-type]
    return known


def reason(data: bytes, swarm: Swarm = SWARM, peer: str = ALICE.peer_id, now: float = NOW) -> str | None:
    return check_certificate(data, swarm, peer, now, revocations(swarm))  # type: ignore[arg-type]


def test_a_member_is_let_in_and_the_owner_needs_no_certificate() -> None:
    assert reason(certificate(SWARM, ALICE)) is None
    assert reason(b"", peer=OWNER.peer_id) is None


def test_a_public_swarm_lets_everybody_in() -> None:
    assert reason(b"", public_swarm()) is None
    assert reason(b"rubbish", public_swarm()) is None


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "private.*ask for an invite"),
        (b"rubbish", "not a membership certificate"),
        (certificate(SWARM, BOB), "belongs to another peer"),
        (certificate(private_swarm(2), ALICE), "of another swarm"),
        (certificate(SWARM, ALICE, NOW - 10, 9.0), "has expired"),
        (certificate(SWARM, ALICE, NOW + 3600), "clock"),
        (issue(BOB, SWARM, ALICE.peer_id, "1", NOW), "not signed by the owner"),
        (issue(ALICE, SWARM, ALICE.peer_id, "1", NOW), "not signed by the owner"),
        (issue(OWNER, SWARM, ALICE.peer_id, "1", NOW, float("inf")), "no sound dates"),
        (issue(OWNER, SWARM, ALICE.peer_id, "1", NOW, float("nan")), "no sound dates"),
    ],
)
def test_everybody_else_is_told_why_not(data: bytes, text: str) -> None:
    why = reason(data)
    assert why is not None
    with pytest.raises(Refused, match=text):
        raise Refused(why)
    assert "\n" not in why


def test_a_swarm_that_calls_itself_public_is_another_swarm() -> None:
    opened = msgspec.structs.replace(SWARM, public=True)
    assert opened.id != SWARM.id
    assert len({private_swarm(1).id, private_swarm(2).id, public_swarm().id}) == 3


@pytest.mark.parametrize(
    ("name", "owner", "salt"),
    [
        ("", OWNER.peer_id, b"x" * 16),
        ("x" * 65, OWNER.peer_id, b"x" * 16),
        ("red\x1b[31m", OWNER.peer_id, b"x" * 16),
        ("name", "somebody", b"x" * 16),
        ("name", OWNER.peer_id, b""),
    ],
)
def test_a_swarm_without_sound_parts_cannot_be_founded(name: str, owner: str, salt: bytes) -> None:
    with pytest.raises(ValueError, match="swarm's"):
        found_swarm(name, owner, salt)  # type: ignore[arg-type]


@given(st.data())
def test_a_certificate_with_any_byte_changed_is_refused(data: st.DataObject) -> None:
    good = certificate(SWARM, ALICE)
    at = data.draw(st.integers(0, len(good) - 1))
    bent = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    assert reason(bent) is not None


@given(st.binary(max_size=600))
def test_any_bytes_are_refused_with_a_reason(data: bytes) -> None:
    assert reason(data)


def test_the_guard_remembers_until_the_certificate_expires() -> None:
    guard = MembershipGuard(SWARM, revocations())
    assert not guard.is_admitted(ALICE.peer_id, NOW)
    guard.admit(ALICE.peer_id, certificate(SWARM, ALICE, NOW, 100.0), NOW)
    assert guard.is_admitted(ALICE.peer_id, NOW + 99)
    assert not guard.is_admitted(ALICE.peer_id, NOW + 100)
    with pytest.raises(Refused, match="expired"):
        guard.admit(ALICE.peer_id, certificate(SWARM, ALICE, NOW, 100.0), NOW + 100)


def test_a_known_member_that_shows_another_certificate_is_checked_again() -> None:
    guard = MembershipGuard(SWARM, revocations())
    guard.admit(ALICE.peer_id, certificate(SWARM, ALICE), NOW)
    with pytest.raises(Refused):
        guard.admit(ALICE.peer_id, certificate(SWARM, BOB), NOW)
    assert not guard.is_admitted(ALICE.peer_id, NOW)


@pytest.mark.parametrize("swarm", [SWARM, public_swarm()], ids=["private", "public"])
def test_a_revoked_peer_is_out_at_once_and_the_others_are_not(swarm: Swarm) -> None:
    known = revocations(swarm)
    guard = MembershipGuard(swarm, known)
    for member in (ALICE, BOB):
        guard.admit(member.peer_id, certificate(swarm, member), NOW)
    known.merge(sign_list(OWNER, swarm.id, 1, frozenset({ALICE.peer_id})))
    assert not guard.is_admitted(ALICE.peer_id, NOW)
    with pytest.raises(Refused, match=f"{ALICE.peer_id} was revoked"):
        guard.admit(ALICE.peer_id, certificate(swarm, ALICE), NOW)
    guard.admit(BOB.peer_id, certificate(swarm, BOB), NOW)
    known.merge(sign_list(OWNER, swarm.id, 2, frozenset()))
    guard.admit(ALICE.peer_id, certificate(swarm, ALICE), NOW)
