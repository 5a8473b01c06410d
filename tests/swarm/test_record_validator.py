"""What may be stored in the DHT. Each attack is one that a plain hivemind DHT lets through."""

from dataclasses import dataclass, replace

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from swarm.people import MODEL, NOW, OWNER, certificate, hosted, person, private_swarm, record

from shoal.swarm.identifiers import ModelId
from shoal.swarm.identity import Identity
from shoal.swarm.members.revocation import Revocations, sign_list
from shoal.swarm.records import Hosted, NodeRecord, RecordReader, sign_record
from shoal.swarm.transports import dht_keys
from shoal.swarm.transports.record_validator import REVOCATION_TTL_S, SwarmRecordValidator
from shoal.swarm.units import Span

SWARM = private_swarm()
ALICE, BOB = person(1), person(2)
pack = msgspec.msgpack.encode


@dataclass(frozen=True)
class Stored:
    key: bytes
    subkey: bytes
    value: bytes
    expiration_time: float


class Place:
    """A validator with a clock that stands still."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now
        self.revocations = Revocations(SWARM.id, SWARM.owner)
        self.validator = SwarmRecordValidator(RecordReader(SWARM, self.revocations), lambda: self.now)

    def takes(self, stored: Stored) -> bool:
        return self.validator.validate(stored)


def in_nodes(who: Identity = ALICE, *spans: Hosted, **changes: object) -> Stored:
    made = record(who, SWARM, *spans, **changes)  # type: ignore[arg-type]
    return stored(who, made)


def stored(who: Identity, made: NodeRecord) -> Stored:
    key = dht_keys.key_id(dht_keys.node_key(SWARM.id, who.peer_id))
    return Stored(key, pack(who.peer_id), pack(sign_record(who, made)), made.expires_at)


def test_a_members_record_is_taken_in_the_list_of_nodes_and_of_its_models() -> None:
    place = Place()
    good = in_nodes(ALICE, hosted(Span(0, 8)))
    assert place.takes(good)
    of_model = dht_keys.key_id(dht_keys.model_key(SWARM.id, MODEL, ALICE.peer_id))
    assert place.takes(replace(good, key=of_model))
    assert place.validator.sign_value(good) == good.value
    assert place.validator.strip_value(good) == good.value


def test_nobody_can_overwrite_the_record_of_another() -> None:
    place, good = Place(), in_nodes(ALICE)
    assert not place.takes(replace(good, value=in_nodes(BOB).value))
    assert not place.takes(replace(in_nodes(BOB), subkey=pack(ALICE.peer_id)))
    assert not place.takes(replace(good, value=pack(b"")))


def test_nobody_can_wipe_a_shard_with_a_plain_value() -> None:
    place, good = Place(), in_nodes(ALICE)
    nothing = pack(None)  # hivemind's subkey of a value that replaces the whole dictionary
    assert not place.takes(replace(good, subkey=nothing))
    assert not place.takes(replace(good, subkey=nothing, value=pack(None), expiration_time=NOW + 20))
    assert not place.takes(replace(good, subkey=b""))


def test_a_record_cannot_be_kept_alive_or_renewed_by_others() -> None:
    place, good = Place(), in_nodes(ALICE)
    for expiration_time in (NOW + 25, NOW + 1e9, float("inf"), float("nan"), NOW + 23):
        assert not place.takes(replace(good, expiration_time=expiration_time))


def test_a_lifetime_beyond_the_cap_is_refused_even_from_its_owner() -> None:
    place = Place()
    assert place.takes(in_nodes(ALICE, expires_at=NOW + 27))
    assert not place.takes(in_nodes(ALICE, expires_at=NOW + 27.1))
    assert not place.takes(in_nodes(ALICE, expires_at=NOW + 1e6))


def test_an_expired_record_is_not_an_attack() -> None:
    """Storage drops it and listings hide it; refusing it here would only punish clocks that differ."""
    assert Place(NOW + 30).takes(in_nodes(ALICE))


def test_oversize_is_refused() -> None:
    place, good = Place(), in_nodes(ALICE)
    assert not place.takes(replace(good, value=pack(b"x" * 5000)))
    assert not place.takes(replace(good, value=b"\xc6\xff\xff\xff\xff"))
    assert not place.takes(replace(good, value=bytes(10**7)))
    assert not place.takes(replace(good, subkey=pack("x" * 1000)))


def test_keys_that_are_not_ours_and_shards_of_others_are_refused() -> None:
    place, good = Place(), in_nodes(ALICE, hosted(Span(0, 8)))
    own = dht_keys.node_key(SWARM.id, ALICE.peer_id)
    others = [key for key in dht_keys.node_keys(SWARM.id) if key != own]
    others += [b"anything", dht_keys.model_key(SWARM.id, ModelId("f" * 64), ALICE.peer_id)]
    others += [dht_keys.node_key(private_swarm(2).id, ALICE.peer_id)]
    for key in others:
        assert not place.takes(replace(good, key=dht_keys.key_id(key)))


def test_a_stranger_and_a_revoked_member_are_refused() -> None:
    place, good = Place(), in_nodes(ALICE)
    for wrong in (b"", certificate(SWARM, BOB), certificate(private_swarm(2), ALICE)):
        assert not place.takes(in_nodes(ALICE, certificate=wrong))
    assert place.takes(good)
    place.revocations.merge(sign_list(OWNER, SWARM.id, 1, frozenset({ALICE.peer_id})))
    assert not place.takes(good)
    assert place.takes(in_nodes(BOB))


def test_a_clock_that_is_far_off_makes_records_that_others_refuse() -> None:
    ahead, behind = Place(NOW + 600), Place(NOW - 600)
    assert not behind.takes(in_nodes(ALICE))
    assert not Place().takes(in_nodes(ALICE, expires_at=ahead.now + 24))


def revocation(version: int, *, by: Identity = OWNER, until: float = NOW + REVOCATION_TTL_S) -> Stored:
    data = sign_list(by, SWARM.id, version, frozenset({BOB.peer_id}))
    return Stored(dht_keys.key_id(dht_keys.revocation_key(SWARM.id)), pack(version), pack(data), until)


def test_the_owners_revocations_are_taken_and_learned_from_anybody() -> None:
    place = Place()
    assert place.takes(revocation(2))
    assert place.revocations.version == 2
    assert place.takes(revocation(2, until=NOW + 60))
    assert place.takes(revocation(3))
    assert not place.takes(in_nodes(BOB))


def test_forged_older_or_immortal_revocations_are_refused() -> None:
    place = Place()
    assert not place.takes(revocation(1, by=ALICE))
    assert not place.takes(revocation(1, until=NOW + 2 * REVOCATION_TTL_S))
    assert not place.takes(revocation(1, until=float("inf")))
    assert not place.takes(replace(revocation(1), subkey=pack(7)))
    assert not place.takes(replace(revocation(1), subkey=pack(None)))
    assert place.revocations.version == 0
    assert place.takes(revocation(5))
    assert not place.takes(revocation(4))
    assert place.revocations.version == 5


@given(st.binary(max_size=100), st.binary(max_size=80), st.sampled_from(["nodes", "revocations"]))
def test_any_bytes_are_refused(value: bytes, subkey: bytes, where: str) -> None:
    good = in_nodes(ALICE) if where == "nodes" else revocation(1)
    place = Place()
    assert not place.takes(replace(good, value=value))
    assert not place.takes(replace(good, value=pack(value)))
    if subkey != good.subkey:
        assert not place.takes(replace(good, subkey=subkey))


def test_values_of_other_types_are_refused() -> None:
    """A dictionary that a hostile peer returns may hold anything where bytes and floats belong."""
    place, good = Place(), in_nodes(ALICE)
    for changes in (
        {"value": 5},
        {"value": None},
        {"subkey": "x"},
        {"expiration_time": "soon"},
        {"expiration_time": None},
    ):
        assert not place.takes(replace(good, **changes))  # type: ignore[arg-type]


def test_a_swarm_of_thousands_spreads_over_the_shards() -> None:
    peers = [person(number).peer_id for number in range(800)]
    for keys, key_of in (
        (dht_keys.node_keys(SWARM.id), lambda peer: dht_keys.node_key(SWARM.id, peer)),
        (dht_keys.model_keys(SWARM.id, MODEL), lambda peer: dht_keys.model_key(SWARM.id, MODEL, peer)),
    ):
        counts = [sum(key_of(peer) == key for peer in peers) for key in keys]
        assert sum(counts) == len(peers)
        assert max(counts) < 2 * len(peers) / len(keys)
