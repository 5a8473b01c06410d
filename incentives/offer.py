"""What a driver sends of an OPEN: only what the server cannot know. The server makes the entry anew and checks it.

Who signs, for whom, for which session, at what price and how long follows from the session's request and from the peer
at the other end; where the entry stands follows from the entry before it. What is left are the signature, the root of
the words, the number and the time. Whoever rebuilds it from other values gets an entry that nobody has signed.

Layout: number * 4 + flags, seconds since the entry before (both: seven bits a byte, lowest first, the high bit set on
all but the last), signature, root; with the flag _MORE also a message-packed `_More`.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage

from . import entry as entries
from .bodies import MAX_LIFETIME_S, SIGNATURE_BYTES, TICK_TOKENS, WORD_BYTES, Open, Ticks
from .entry import NO_HASH, Entry

LIFETIME_S = 3600  # and two seconds a token
MOST_BEFORE = 200  # entries that go with an offer; a server that lacks more has to ask
MAX_OFFER_BYTES = 1 << 16
_MOST_NUMBER_BYTES = 6
_PAID, _MORE = 1, 2


@dataclass(frozen=True, slots=True)
class Offer:
    """delay_s: since the entry before
    before: entries of the driver's chain that the server may lack, in order; without them it could not judge the OPEN
    ticks, word: for positions that will be computed again here
    """

    seq: int
    paid: bool
    delay_s: int
    signature: bytes
    root: bytes
    before: tuple[bytes, ...] = ()
    ticks: int = 0
    word: bytes = b""


class _More(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    before: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MOST_BEFORE)]
    ticks: Ticks
    word: bytes


_more = Canonical(_More, "an offer of payment", MAX_OFFER_BYTES)


def encode(offer: Offer) -> bytes:
    more = b""
    if offer.before or offer.ticks:
        more = _more.encode(_More(offer.before, offer.ticks, offer.word))
    flags = _PAID * offer.paid | _MORE * bool(more)
    return _number(offer.seq << 2 | flags) + _number(offer.delay_s) + offer.signature + offer.root + more


def decode(data: bytes) -> Offer:
    """raises: MalformedMessage, whatever the bytes are"""
    place, at = _read_number(data, 0)
    delay_s, at = _read_number(data, at)
    stop = at + SIGNATURE_BYTES + WORD_BYTES
    if len(data) < stop or (len(data) > stop and not place & _MORE):
        raise MalformedMessage(f"an offer of payment of {len(data)} bytes")
    signature, root = data[at : at + SIGNATURE_BYTES], data[at + SIGNATURE_BYTES : stop]
    more = _more.decode(data[stop:]) if place & _MORE else _More((), 0, b"")
    return Offer(place >> 2, bool(place & _PAID), delay_s, signature, root, more.before, more.ticks, more.word)


def lifetime_s(positions: int) -> int:
    """Of the reservation for a session that may reach so many."""
    return min(MAX_LIFETIME_S, LIFETIME_S + 2 * positions)


def terms(server: bytes, session: bytes, root: bytes, positions: int, price: int) -> Open:
    """The body of the OPEN. price: credits for one tick; 0 in the free lane"""
    lane = 1 if price else 0
    return Open(server, session, root, price, TICK_TOKENS, positions // TICK_TOKENS, lifetime_s(positions), lane)


def rebuilt(offer: Offer, author: bytes, before: Entry | None, body: Open, prev: bytes = NO_HASH) -> Entry:
    """The entry that was signed, if all of this is what its author meant.

    before: the author's entry before; None for its first, which follows `prev`
    raises: MalformedMessage for numbers that no entry may have
    """
    prev = entries.hash_of(before) if before is not None else prev
    time = (before.time if before is not None else 0) + offer.delay_s
    return entries.decode(entries.encode(Entry(author, offer.seq, prev, time, body, offer.signature)))


def session_name(session: str) -> bytes:
    """As it stands in an OPEN: at most 32 bytes."""
    try:
        return bytes.fromhex(session)[:32] or b"\0"
    except ValueError:
        return session.encode()[:32] or b"\0"


def _number(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for number, byte in enumerate(data[at : at + _MOST_NUMBER_BYTES]):
        value |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return value, at + number + 1
    raise MalformedMessage("an offer of payment without an end")
