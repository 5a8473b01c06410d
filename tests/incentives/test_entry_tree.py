"""One root for a chain, that grows with it; a short proof for one entry; witnesses that everybody computes alike."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.people import person

from shoal.incentives.entry_tree import Frontier, inclusion_path, is_included, root_of
from shoal.incentives.rendezvous import WITNESSES, witnesses
from shoal.swarm.rounds import hash_tree


def hashes(count: int) -> list[bytes]:
    return [hashlib.sha256(bytes([number % 256, number // 256])).digest() for number in range(count)]


@given(st.integers(1, 300), st.data())
def test_a_root_that_grew_is_the_root_over_all(count: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, count))
    grown = Frontier().grown(hashes(count)[:cut]).grown(hashes(count)[cut:])
    assert grown.root == hash_tree.root([hash_tree.leaf_hash(each) for each in hashes(count)])
    assert grown.count == count
    assert len(grown.peaks) == count.bit_count()


def test_a_chain_without_entries_has_no_root() -> None:
    with pytest.raises(ValueError, match="leaves"):
        _ = Frontier().root


@given(st.integers(1, 200), st.data())
def test_every_entry_can_be_shown_and_no_other_in_its_place(count: int, data: st.DataObject) -> None:
    leaves, seq = hashes(count), data.draw(st.integers(0, count - 1))
    root, path = root_of(leaves), inclusion_path(leaves, seq)
    assert is_included(root, count, seq, leaves[seq], path)
    assert not is_included(root, count, seq, bytes(32), path)
    assert not is_included(root, count + 1, seq, leaves[seq], path)
    assert len(path) <= count.bit_length()
    if count > 1:
        wrong = data.draw(st.integers(0, count - 1).filter(lambda other: other != seq))
        assert not is_included(root, count, wrong, leaves[seq], path)
        assert not is_included(root, count, seq, leaves[seq], path[:-1])


def test_witnesses_are_five_others_alike_for_all_and_spread_over_the_members() -> None:
    members = [person(number).peer_id for number in range(60)]
    burden: dict[str, int] = {}
    for number in range(60):
        author = person(number)
        found = witnesses(author.public_key, members)
        assert len(set(found)) == WITNESSES
        assert author.peer_id not in found
        assert found == witnesses(author.public_key, reversed(members))
        for peer in found:
            burden[peer] = burden.get(peer, 0) + 1
    assert len(burden) > 50
    assert max(burden.values()) < 16
    assert witnesses(person(1).public_key, members, b"tomorrow") != witnesses(person(1).public_key, members)


def test_a_member_that_leaves_changes_one_witness_of_those_it_watched_and_none_of_the_others() -> None:
    members = [person(number).peer_id for number in range(60)]
    for number in range(20):
        before = witnesses(person(number).public_key, members)
        gone = members[30]
        after = witnesses(person(number).public_key, [member for member in members if member != gone])
        assert len(set(before) - set(after)) == (1 if gone in before else 0)


def test_a_small_swarm_has_fewer_witnesses() -> None:
    assert witnesses(person(1).public_key, [person(1).peer_id]) == ()
    assert witnesses(person(1).public_key, [person(1).peer_id, person(2).peer_id]) == (person(2).peer_id,)
