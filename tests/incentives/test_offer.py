"""What is sent of an OPEN makes the same entry at the other end, or none that anybody signed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.incentives import entry as entries
from shoal.incentives import offer as offers
from shoal.incentives.bodies import MAX_LIFETIME_S
from shoal.incentives.entry import NO_HASH, Entry
from shoal.incentives.offer import Offer
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identity import Identity

CLIENT, SERVER = (Identity(bytes([n]) * 32) for n in (1, 2))
ROOT, NOW, POSITIONS = bytes(range(16)), 1_790_000_000, 640


def opened(seq: int, before: Entry | None, price: int = 7) -> tuple[Entry, Offer]:
    body = offers.terms(SERVER.public_key, b"session", ROOT, POSITIONS, price)
    prev = entries.hash_of(before) if before else NO_HASH
    entry = entries.write(CLIENT, seq, prev, NOW + seq, body)
    return entry, Offer(seq, bool(price), entry.time - (before.time if before else 0), entry.signature, ROOT)


def test_the_server_makes_the_entry_that_the_client_signed() -> None:
    before: Entry | None = None
    for seq in range(3):
        entry, offer = opened(seq, before)
        assert offers.rebuilt(offer, CLIENT.public_key, before, entry.body) == entry  # type: ignore[arg-type]
        assert entries.is_signed(entry)
        before = entry


@pytest.mark.parametrize("change", ["session", "root", "server", "price", "positions", "seq", "time", "before"])
def test_a_server_that_assumes_anything_else_has_an_entry_that_nobody_signed(change: str) -> None:
    first, _ = opened(0, None)
    _, offer = opened(1, first)
    terms: dict[str, object] = {
        "server": SERVER.public_key, "session": b"session", "root": ROOT, "positions": POSITIONS, "price": 7
    }  # fmt: skip
    other = {"session": b"other", "root": bytes(16), "server": CLIENT.public_key, "price": 8, "positions": 672}
    terms |= {name: value for name, value in other.items() if name == change}
    changed = Offer(
        offer.seq + (change == "seq"), True, offer.delay_s + (change == "time"), offer.signature, offer.root
    )
    before = opened(0, None, price=9)[0] if change == "before" else first
    entry = offers.rebuilt(changed, CLIENT.public_key, before, offers.terms(**terms))  # type: ignore[arg-type]
    assert not entries.is_signed(entry)


def test_an_offer_in_a_running_relation_has_at_most_88_bytes() -> None:
    assert len(offers.encode(Offer(70_000, True, 3600, bytes(64), ROOT))) == 85
    assert len(offers.encode(Offer(500_000, True, 30 * 86_400, bytes(64), ROOT))) <= 88


offer_values = st.builds(
    Offer,
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.integers(0, 2**40),
    st.binary(min_size=64, max_size=64),
    st.binary(min_size=16, max_size=16),
    st.lists(st.binary(max_size=300), max_size=3).map(tuple),
)


@given(offer_values, st.integers(1, 2**20), st.booleans())
def test_an_offer_comes_back_as_it_was(offer: Offer, ticks: int, replay: bool) -> None:
    if replay:
        offer = Offer(*(getattr(offer, name) for name in Offer.__slots__[:6]), ticks, bytes(16))
    assert offers.decode(offers.encode(offer)) == offer


@given(st.binary(max_size=400))
def test_any_bytes_are_an_offer_or_raise_the_one_error(data: bytes) -> None:
    try:
        offer = offers.decode(data)
        offers.rebuilt(offer, CLIENT.public_key, None, offers.terms(SERVER.public_key, b"s", offer.root, POSITIONS, 1))
    except MalformedMessage:
        return


@given(offer_values, st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_offer_is_an_offer_or_raises_the_one_error(offer: Offer, at: int, flip: int) -> None:
    data = bytearray(offers.encode(offer))
    data[at % len(data)] ^= flip
    try:
        assert isinstance(offers.decode(bytes(data)), Offer)
    except MalformedMessage:
        return


def test_a_long_session_is_reserved_for_a_day_at_most() -> None:
    assert offers.lifetime_s(100) == 3800
    assert offers.lifetime_s(10**6) == MAX_LIFETIME_S
