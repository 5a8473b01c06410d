"""PeerIDs: round trip with keys, and what is refused."""

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.people import person

from shoal.swarm import peer_id
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identifiers import PeerId

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
HEAD = bytes.fromhex("002408011220")


def edwards_add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2
    return (
        (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P,
    )


def x_of(y: int) -> int | None:
    """A square root of (y^2 - 1) / (d y^2 + 1), or None when y is on no point."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * pow(2, (P - 1) // 4, P) % P
    return root if root * root % P == square else None


def order_divides_eight(y: int) -> bool:
    x = x_of(y)
    assert x is not None
    point = (x, y)
    for _ in range(3):
        point = edwards_add(point, point)
    return point == (0, 1)


def test_a_key_and_its_peer_id_are_one_thing() -> None:
    for number in range(20):
        identity = person(number)
        assert identity.peer_id.startswith("12D3KooW")
        assert peer_id.public_key_of(identity.peer_id) == identity.public_key
        assert peer_id.is_peer_id(identity.peer_id)


def test_a_known_peer_id_of_the_libp2p_specification_reads_back() -> None:
    text = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"  # from go-libp2p's examples
    assert peer_id.from_public_key(peer_id.public_key_of(PeerId(text))) == text


def test_every_listed_point_of_small_order_has_small_order_and_is_refused_with_both_signs() -> None:
    listed = sorted(peer_id.SMALL_ORDER_Y)
    assert len(listed) == 5
    for y in listed:
        assert order_divides_eight(y)
        for sign in (0, 1 << 255):
            with pytest.raises(MalformedMessage, match="small order"):
                peer_id.from_public_key((y + sign).to_bytes(32, "little"))


def test_no_point_of_small_order_is_missing_from_the_list() -> None:
    """The torsion subgroup is cyclic of order 8: all its points are multiples of one of order 8."""
    generator = next(
        (x, y)
        for y in peer_id.SMALL_ORDER_Y
        if (x := x_of(y)) is not None and edwards_add(edwards_add((x, y), (x, y)), edwards_add((x, y), (x, y)))[1] != 1
    )
    point, seen = (0, 1), set()
    for _ in range(8):
        seen.add(point)
        point = edwards_add(point, generator)
    assert len(seen) == 8
    assert {y for _, y in seen} == peer_id.SMALL_ORDER_Y


@pytest.mark.parametrize("y", [P, P + 1, P + 18, 2**255 - 1])
def test_a_y_that_is_not_reduced_is_refused(y: int) -> None:
    with pytest.raises(MalformedMessage, match="canonical"):
        peer_id.from_public_key(y.to_bytes(32, "little"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Qm" + "a" * 44,
        "12D3KooW",
        "1" * 52,
        person(1).peer_id[:-1],
        person(1).peer_id + "1",
        "0" + person(1).peer_id[1:],
        base58.b58encode(bytes.fromhex("002408021220") + person(1).public_key).decode(),
        "1" * 1_000_000,
        "é" * 52,
    ],
)
def test_what_is_no_ed25519_peer_id_is_refused(text: str) -> None:
    assert not peer_id.is_peer_id(text)


@given(st.binary(min_size=32, max_size=32))
def test_any_sound_key_comes_back_from_its_text(key: bytes) -> None:
    try:
        text = peer_id.from_public_key(key)
    except MalformedMessage:
        return
    assert peer_id.public_key_of(text) == key


@given(st.text(max_size=60))
def test_any_text_is_a_peer_id_or_is_refused(text: str) -> None:
    if peer_id.is_peer_id(text):
        assert peer_id.from_public_key(peer_id.public_key_of(PeerId(text))) == text
