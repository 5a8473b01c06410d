"""Announcements of prefixes in the DHT: signed, bounded, by members, and so many of one peer."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.people import MODEL, NOW, certificate, person, private_swarm
from swarm.test_record_validator import Stored

from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.identifiers import ModelId
from shoal.swarm.identity import Identity
from shoal.swarm.members.revocation import Revocations
from shoal.swarm.prefixes.announcement import (
    ANNOUNCEMENT_TTL_S,
    MAX_ANNOUNCEMENT_BYTES,
    MAX_CHUNKS,
    MOST_OF_ONE_PEER,
    announcements,
    read_announcement,
    sign_announcement,
)
from shoal.swarm.prefixes.prefix_chain import Address, Link, address, chain
from shoal.swarm.records import RecordReader
from shoal.swarm.transports import dht_keys
from shoal.swarm.transports.record_validator import SwarmRecordValidator

SWARM = private_swarm()
ALICE, BOB = person(1), person(2)
READER = RecordReader(SWARM, Revocations(SWARM.id, SWARM.owner))
UNTIL = NOW + ANNOUNCEMENT_TTL_S


def chunks(count: int, first: int = 0) -> list[Address]:
    return [Address((1000 * first + number).to_bytes(16)) for number in range(count)]


def said(who: Identity = ALICE, count: int = 3, first: int = 0, until: float = UNTIL) -> bytes:
    return sign_announcement(who, SWARM.id, certificate(SWARM, who), chunks(count, first), until)


def stored(data: bytes, who: Identity = ALICE, first: int = 0, until: float = UNTIL) -> Stored:
    key = dht_keys.key_id(dht_keys.prefix_key(SWARM.id, chunks(1, first)[0]))
    return Stored(key, msgspec.msgpack.encode(who.peer_id), msgspec.msgpack.encode(data), until)


def validator() -> SwarmRecordValidator:
    return SwarmRecordValidator(READER, lambda: NOW)


def test_an_announcement_names_its_chunks_and_no_other() -> None:
    found = read_announcement(said(), READER, NOW)
    assert found.peer == ALICE.peer_id
    assert all(found.names(place) for place in chunks(3))
    assert not found.names(Address(b"\xff" * 16))


def test_the_largest_announcement_travels() -> None:
    assert len(said(count=MAX_CHUNKS + 5)) <= MAX_ANNOUNCEMENT_BYTES
    assert len(read_announcement(said(count=MAX_CHUNKS + 5), READER, NOW).chunks) == 8 * MAX_CHUNKS


def test_what_is_forged_changed_foreign_or_too_long_lived_is_refused() -> None:
    good = announcements.decode(said())
    bad = [
        msgspec.structs.replace(good, peer=BOB.peer_id),
        msgspec.structs.replace(good, chunks=good.chunks + bytes(8)),
        msgspec.structs.replace(good, chunks=good.chunks[:-1]),
        msgspec.structs.replace(good, chunks=b""),
        msgspec.structs.replace(good, root=b"short"),
        msgspec.structs.replace(good, swarm=private_swarm(2).id),
        msgspec.structs.replace(good, expires_at=UNTIL + 60),
        msgspec.structs.replace(good, expires_at=float("nan")),
    ]
    for each in bad:
        with pytest.raises(MalformedMessage):
            read_announcement(announcements.encode(each), READER, NOW)
    stranger = sign_announcement(BOB, SWARM.id, certificate(SWARM, ALICE), chunks(2), UNTIL)
    with pytest.raises(Refused):
        read_announcement(stranger, READER, NOW)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_announcement_or_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read_announcement(data, READER, NOW)


def test_the_dht_takes_it_under_its_own_key_subkey_and_time_only() -> None:
    place, good = validator(), stored(said())
    assert place.validate(good)
    assert not place.validate(replace(good, key=dht_keys.key_id(dht_keys.prefix_key(SWARM.id, chunks(1, 7)[0]))))
    assert not place.validate(replace(good, subkey=msgspec.msgpack.encode(BOB.peer_id)))
    assert not place.validate(replace(good, expiration_time=UNTIL + 1))
    assert not place.validate(replace(good, key=dht_keys.key_id(dht_keys.node_key(SWARM.id, ALICE.peer_id))))


def test_a_thousand_announcements_of_one_peer_are_refused_beyond_its_quota() -> None:
    place = validator()
    taken = sum(place.validate(stored(said(first=number), first=number)) for number in range(1000))
    assert taken == MOST_OF_ONE_PEER
    assert place.validate(stored(said(first=0), first=0))  # one that is there may be renewed
    assert place.validate(stored(said(BOB, first=2000), BOB, first=2000))  # others are not touched


def test_the_quota_is_free_again_when_announcements_have_run_out() -> None:
    now = [NOW]
    place = SwarmRecordValidator(READER, lambda: now[0])
    for number in range(MOST_OF_ONE_PEER):
        assert place.validate(stored(said(first=number), first=number))
    now[0] = UNTIL + 1
    later = now[0] + 60
    assert place.validate(stored(said(first=500, until=later), first=500, until=later))


def test_equal_prefixes_have_equal_links_and_nothing_else_has() -> None:
    ids = tuple(range(200))
    links = chain(MODEL, "float32", "", ids)
    assert len(links) == 3
    assert chain(MODEL, "float32", "", (*ids[:128], 9, *ids[129:]))[:2] == links[:2]
    others = [
        chain(MODEL, "bfloat16", "", ids),
        chain(MODEL, "float32", "session mine", ids),
        chain(ModelId("o" * 64), "float32", "", ids),
        chain(MODEL, "float32", "", (1, *ids[1:])),
    ]
    assert not {link for other in others for link in other} & set(links)
    assert len({address(Link(links[0]), first, stop) for first in range(3) for stop in range(4, 7)}) == 9
