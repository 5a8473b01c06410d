"""One chain an author: what follows is taken, everything else is refused with its reason, two of a place are proof."""

from dataclasses import replace as changed

import pytest
from msgspec.structs import replace

from shoal.incentives import entry as entries
from shoal.incentives.bodies import Ack, Checkpoint, Close, ForkProof, Witness
from shoal.incentives.chain import (
    MAX_AHEAD_S,
    ROTATION_FINAL_S,
    Accepted,
    Chain,
    Forked,
    Refused,
    forger,
    fork_proof,
    judge,
)
from shoal.incentives.entry import NO_HASH, Entry
from shoal.swarm.identity import Identity

NOW = 1_790_000_000
ALICE, BOB, THIEF = (Identity(bytes([n]) * 32) for n in (1, 2, 3))


def body(n: int) -> Ack:
    return Ack(bytes([n]) * 32, 0)


def chain_of(author: Identity, length: int) -> tuple[Chain, list[Entry]]:
    chain, held = Chain(author.public_key), list[Entry]()
    for n in range(length):
        held.append(entries.write(author, n, chain.head, NOW + n, body(n)))
        verdict = judge(held[-1], chain, None, None, NOW + n)
        assert isinstance(verdict, Accepted)
        chain = verdict.chain
    return chain, held


def test_entries_that_follow_each_other_are_taken() -> None:
    chain, held = chain_of(ALICE, 3)
    assert (chain.length, chain.head, chain.time) == (3, entries.hash_of(held[-1]), NOW + 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seq": 4}, "gap"),
        ({"prev": bytes(32)}, "wrong_prev"),
        ({"time": NOW}, "earlier"),
        ({"time": NOW + MAX_AHEAD_S + 4}, "future"),
    ],
)
def test_what_does_not_follow_is_refused(change: dict[str, object], reason: str) -> None:
    chain, _ = chain_of(ALICE, 3)
    place = {"seq": 3, "prev": chain.head, "time": NOW + 3} | change
    entry = entries.write(ALICE, body=body(9), **place)  # type: ignore[arg-type]  a mixed bag
    assert judge(entry, chain, None, None, NOW + 3) == Refused(reason)  # type: ignore[arg-type]


@pytest.mark.parametrize("days", [-1, 1])
def test_an_author_whose_clock_is_a_day_off_is_heard(days: int) -> None:
    entry = entries.write(ALICE, 0, NO_HASH, NOW + days * 86_400, body(0))
    assert isinstance(judge(entry, Chain(ALICE.public_key), None, None, NOW), Accepted)


def test_a_forged_and_an_unsigned_entry_are_refused() -> None:
    chain, _ = chain_of(ALICE, 1)
    by_thief = replace(entries.write(THIEF, 1, chain.head, NOW, body(1)), author=ALICE.public_key)
    unsigned = replace(by_thief, signature=bytes(64))
    for entry in (by_thief, unsigned):
        assert judge(entry, chain, None, None, NOW) == Refused("unsigned")


def test_a_signature_of_one_entry_signs_no_other() -> None:
    chain, held = chain_of(ALICE, 2)
    moved = replace(held[1], body=body(7))
    assert judge(moved, changed(chain, length=1, head=held[1].prev), None, None, NOW + 9) == Refused("unsigned")


@pytest.mark.parametrize("key", [bytes(32), (1).to_bytes(32, "little"), (2**255 - 19 + 3).to_bytes(32, "little")])
def test_weak_keys_sign_nothing(key: bytes) -> None:
    entry = replace(entries.write(ALICE, 0, NO_HASH, NOW, body(0)), author=key)
    assert judge(entry, Chain(key), None, None, NOW) == Refused("unsigned")


def test_a_replayed_entry_is_known_even_with_another_signature() -> None:
    chain, held = chain_of(ALICE, 2)
    assert judge(held[0], chain, held[0], None, NOW + 2) == Refused("known")
    assert judge(replace(held[0], signature=bytes(64)), chain, held[0], None, NOW + 2) == Refused("known")


def test_two_entries_of_one_place_convict_their_author_whoever_saw_which_first() -> None:
    chain, held = chain_of(ALICE, 2)
    other = entries.write(ALICE, 1, held[0].prev, NOW + 1, body(8))
    verdict = judge(other, chain, held[1], None, NOW + 2)
    assert isinstance(verdict, Forked)
    assert verdict.chain.forked
    assert forger(verdict.proof) == ALICE.public_key
    again = judge(held[1], chain, other, None, NOW + 2)
    assert isinstance(again, Forked)
    assert again.proof == verdict.proof
    later = entries.write(ALICE, 2, chain.head, NOW + 3, body(3))
    assert judge(later, verdict.chain, None, None, NOW + 3) == Refused("forked")


def test_nobody_is_convicted_by_what_others_signed() -> None:
    chain, held = chain_of(ALICE, 2)
    forged = replace(entries.write(THIEF, 1, held[0].prev, NOW, body(8)), author=ALICE.public_key)
    assert judge(forged, chain, held[1], None, NOW + 2) == Refused("unsigned")
    assert forger(fork_proof(forged, held[1])) is None
    assert forger(fork_proof(held[1], held[1])) is None
    assert forger(fork_proof(held[0], held[1])) is None


def test_a_fork_with_the_largest_entries_gives_a_proof_that_everybody_can_read() -> None:
    def large(root: int) -> Entry:
        witnesses = (Witness(bytes(32), bytes(64)),) * 16
        return entries.write(ALICE, 0, NO_HASH, NOW, Checkpoint(bytes([root]) * 32, 0, bytes(32), witnesses))

    one, other = large(1), large(2)
    assert len(entries.encode(one)) > 1024
    accepted = judge(one, Chain(ALICE.public_key), None, None, NOW)
    assert isinstance(accepted, Accepted)
    verdict = judge(other, accepted.chain, one, None, NOW)
    assert isinstance(verdict, Forked)
    written = entries.decode(entries.encode(entries.write(BOB, 0, NO_HASH, NOW, verdict.proof)))
    assert isinstance(written.body, ForkProof)
    assert forger(written.body) == ALICE.public_key
    assert len(entries.encode(written)) < 600


def test_who_forks_its_fork_proofs_is_convicted_by_a_proof_of_the_same_size() -> None:
    _, held = chain_of(ALICE, 2)
    proof = fork_proof(held[1], entries.write(ALICE, 1, held[0].prev, NOW, body(8)))
    one, other = (entries.write(BOB, 0, NO_HASH, NOW + late, proof) for late in (0, 1))
    again = fork_proof(one, other)
    assert forger(again) == BOB.public_key
    assert abs(len(encoded_proof(again)) - len(encoded_proof(proof))) < 8


def encoded_proof(proof: ForkProof) -> bytes:
    return entries.encode(entries.write(THIEF, 0, NO_HASH, NOW, proof))


def rotated() -> tuple[Chain, list[Entry], Chain]:
    chain, held = chain_of(ALICE, 2)
    rotate = entries.write(ALICE, 2, chain.head, NOW + 2, entries.consent(BOB, ALICE.public_key, 2, chain.head))
    verdict = judge(rotate, chain, None, None, NOW + 2)
    assert isinstance(verdict, Accepted)
    first = entries.write(BOB, 0, verdict.chain.head, NOW + 3, body(0))
    after = judge(first, Chain(BOB.public_key), None, verdict.chain, NOW + 3)
    assert isinstance(after, Accepted)
    return verdict.chain, [*held, rotate], after.chain


def test_a_rotation_wants_both_keys() -> None:
    chain, _ = chain_of(ALICE, 1)
    of_thief = replace(entries.consent(THIEF, ALICE.public_key, 1, chain.head), new_key=BOB.public_key)
    elsewhere = entries.consent(BOB, ALICE.public_key, 0, NO_HASH)
    for rotation in (of_thief, elsewhere):
        entry = entries.write(ALICE, 1, chain.head, NOW + 1, rotation)
        assert judge(entry, chain, None, None, NOW + 1) == Refused("unsigned")


def test_after_a_rotation_the_new_key_goes_on_and_a_stolen_old_one_is_worthless() -> None:
    old, held, _ = rotated()
    stolen = entries.write(ALICE, 3, old.head, NOW + 4, Close(bytes(32), 1, bytes(16)))
    assert judge(stolen, old, None, None, NOW + 4) == Refused("rotated")
    rewritten = entries.write(ALICE, 2, held[1].prev, NOW + 2, body(5))
    assert isinstance(judge(rewritten, old, held[2], None, NOW + 4), Forked), "for a week it may be a hidden spend"
    assert judge(rewritten, old, held[2], None, NOW + 4 + ROTATION_FINAL_S) == Refused("rotated")


def test_only_the_named_successor_continues_a_chain() -> None:
    old, _, _ = rotated()
    thief = entries.write(THIEF, 0, old.head, NOW + 3, body(0))
    assert judge(thief, Chain(THIEF.public_key), None, old, NOW + 3) == Refused("not_successor")
    assert judge(thief, Chain(THIEF.public_key), None, None, NOW + 3) == Refused("not_successor")
