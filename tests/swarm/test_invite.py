"""The invite line: what a person copies, and what can go wrong on the way."""

import base64
import random
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.people import NOW, OWNER, certificate, person, private_swarm, public_swarm

from shoal.swarm.errors import MalformedMessage, Refused, UsageError
from shoal.swarm.identity import Identity
from shoal.swarm.members import invite as invites
from shoal.swarm.members.invite import Invite, JoinAnswer, JoinRequest, RenewRequest, read_invite, write_invite
from shoal.swarm.members.membership import Swarm
from shoal.swarm.members.revocation import sign_list

SWARM = private_swarm()
ADDRESS = f"/ip4/192.168.1.7/tcp/4001/p2p/{OWNER.peer_id}"
SECRET = bytes(range(16))
ME = person(1)


def line(owner: Identity = OWNER, swarm: Swarm = SWARM, secret: bytes = SECRET, expires_at: float = NOW + 60) -> str:
    return write_invite(owner, swarm, (ADDRESS,), expires_at, secret)


def repacked(**changes: object) -> str:
    """An invite that somebody else changed, with a checksum that fits again."""
    payload = msgspec.msgpack.encode(msgspec.structs.replace(read_invite(line(), NOW), **changes))
    body = zlib.crc32(payload).to_bytes(4, "big") + payload
    return invites.PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")


def test_an_invite_comes_back_even_when_the_line_was_wrapped() -> None:
    text = line()
    assert "\n" not in text
    assert " " not in text
    assert len(text) < 600
    for copied in (text, f"  {text}\n", text[:40] + "\n   " + text[40:], text.replace("shoal1", "Shoal1")):
        found = read_invite(copied, NOW)
        assert found.swarm == SWARM
        assert found.bootstrap == (ADDRESS,)
        assert found.secret == SECRET


def test_a_public_invite_has_no_secret() -> None:
    assert read_invite(line(swarm=public_swarm(), secret=b""), NOW).secret == b""
    with pytest.raises(UsageError, match="none"):
        line(swarm=public_swarm())
    with pytest.raises(UsageError, match="secret"):
        line(secret=b"")


@pytest.mark.parametrize("addresses", [(), ("/ip4/1.2.3.4/tcp/1",), ("nonsense",), (ADDRESS,) * 9])
def test_an_invite_without_sound_addresses_is_not_written(addresses: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="cannot write an invite"):
        write_invite(OWNER, SWARM, addresses, NOW + 60, SECRET)


@pytest.mark.parametrize("text", ["", "hello", "https://example.org", "shoal2:abc", "shoal1"])
def test_what_is_no_invite_is_called_so(text: str) -> None:
    with pytest.raises(UsageError, match="this is not an invite"):
        read_invite(text, NOW)


def test_every_single_typo_is_found() -> None:
    text = line()
    generator = random.Random(7)
    for at in range(len(invites.PREFIX), len(text)):
        typo = generator.choice([c for c in "abcXYZ019-_" if c != text[at]])
        with pytest.raises(UsageError, match="damaged"):
            read_invite(text[:at] + typo + text[at + 1 :], NOW)


def test_every_truncation_is_found() -> None:
    text = line()
    for length in range(len(invites.PREFIX), len(text)):
        with pytest.raises(UsageError, match="damaged"):
            read_invite(text[:length], NOW)


@given(st.text(max_size=300))
def test_any_text_after_the_prefix_is_damaged(text: str) -> None:
    with pytest.raises(UsageError):
        read_invite(invites.PREFIX + text, NOW)


def test_an_expired_invite_is_refused() -> None:
    assert read_invite(line(), NOW + 59.9)
    with pytest.raises(Refused, match="has expired"):
        read_invite(line(), NOW + 60)


@pytest.mark.parametrize(
    "changes",
    [
        {"bootstrap": ("/ip4/6.6.6.6/tcp/1/p2p/evil",)},
        {"expires_at": NOW + 1e9},
        {"expires_at": float("nan")},
        {"secret": b"x" * 16},
        {"swarm": private_swarm(2)},
        {"swarm": msgspec.structs.replace(SWARM, public=True)},
        {"swarm": msgspec.structs.replace(SWARM, owner=ME.peer_id)},
        {"bootstrap": ()},
        {"signature": b""},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_changed_invite_is_forged(changes: dict[str, object]) -> None:
    with pytest.raises(Refused, match="forged") as caught:
        read_invite(repacked(**changes), NOW)
    assert caught.value.exit_code == 4


def test_an_invite_signed_by_somebody_else_is_forged() -> None:
    with pytest.raises(Refused, match="forged"):
        read_invite(line(owner=ME), NOW)


def test_the_proof_is_bound_to_the_peer_and_does_not_contain_the_secret() -> None:
    found = read_invite(line(), NOW)
    request = invites.requests.decode(invites.join_request(found, ME.peer_id, "desk"))
    assert isinstance(request, JoinRequest)
    assert request.proof == invites.prove(SECRET, ME.peer_id)
    assert request.proof != invites.prove(SECRET, person(2).peer_id)
    assert SECRET not in invites.join_request(found, ME.peer_id, "desk")
    assert request.invite == found.id


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_malformed(data: bytes) -> None:
    try:
        request = invites.requests.decode(data)
    except MalformedMessage:
        return
    assert isinstance(request, JoinRequest | RenewRequest)


def test_the_joiner_checks_what_the_owner_answers() -> None:
    good = certificate(SWARM, ME)
    answer = invites.answers.encode(JoinAnswer(good, b""))
    assert invites.read_answer(answer, SWARM, ME.peer_id, NOW).certificate == good
    for wrong in (b"", certificate(SWARM, person(2)), certificate(private_swarm(2), ME)):
        with pytest.raises(Refused):
            invites.read_answer(invites.answers.encode(JoinAnswer(wrong, b"")), SWARM, ME.peer_id, NOW)
    out = sign_list(OWNER, SWARM.id, 1, frozenset({ME.peer_id}))
    with pytest.raises(Refused, match="revoked"):
        invites.read_answer(invites.answers.encode(JoinAnswer(good, out)), SWARM, ME.peer_id, NOW)
    with pytest.raises(MalformedMessage):
        invites.read_answer(b"{}", SWARM, ME.peer_id, NOW)


def test_an_invite_is_one_value_for_equal_bytes() -> None:
    assert read_invite(line(), NOW) == Invite(SWARM, (ADDRESS,), NOW + 60, SECRET, read_invite(line(), NOW).signature)
