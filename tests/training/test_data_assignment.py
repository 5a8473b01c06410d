from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.node.training.data.assignment import KEPT_ROUNDS, DataOrder, Roster, Share, share_of
from shoal.node.training.data.shuffling import shuffled
from shoal.swarm.identifiers import PeerId

PEERS = tuple(PeerId(name) for name in ("ana", "ben", "cleo", "dan", "eva"))
ORDER = DataOrder("0" * 64, windows=100, share=4, seed=7)


def met(order: DataOrder, rounds: Sequence[Sequence[PeerId]]) -> Roster:
    roster = Roster()
    for number, contributors in enumerate(rounds):
        roster = roster.after(order, number, tuple(contributors))
    return roster


def all_of(share: Share) -> set[int]:
    return set(share.windows(0, share.count))


@given(st.integers(1, 3000), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_shuffling_is_a_permutation_that_its_seed_decides(count: int, seed: int) -> None:
    found = shuffled(range(count), count, seed)
    assert sorted(found) == list(range(count))
    assert shuffled([count // 2], count, seed) == [found[count // 2]]
    if count > 50:
        assert found != shuffled(range(count), count, seed + 1)
        assert found != list(range(count))


def test_shuffling_stays_the_same_in_every_version() -> None:
    assert shuffled(range(10), 10, 1) == [9, 3, 1, 7, 5, 4, 0, 6, 8, 2]


@given(
    st.lists(st.sets(st.sampled_from(PEERS), min_size=1), min_size=1, max_size=40),
    st.integers(2, 200),
    st.integers(1, 9),
    st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_no_two_peers_get_the_same_window_in_an_epoch_whoever_comes_and_goes(
    rounds: list[set[PeerId]], windows: int, share: int, seed: int
) -> None:
    order = DataOrder("0" * 64, windows, share, seed)
    roster = Roster()
    owner: dict[tuple[int, int], tuple[PeerId, int]] = {}
    for number, contributors in enumerate(rounds):
        for peer in PEERS:
            found = share_of(order, roster, peer, number)
            if found is None:
                assert peer not in roster.peers[:windows]
                continue
            for window in all_of(found):
                assert (found.epoch, window) not in owner
                owner[found.epoch, window] = peer, number
        roster = roster.after(order, number, tuple(contributors))


def test_a_peer_that_has_just_come_gets_its_share_after_one_round() -> None:
    roster = met(ORDER, [PEERS[:2]])
    assert share_of(ORDER, roster, PEERS[2], 1) is None
    roster = roster.after(ORDER, 1, PEERS[:3])
    found = share_of(ORDER, roster, PEERS[2], 2)
    assert found is not None
    assert found.count == ORDER.share


def test_a_peer_that_is_gone_keeps_its_share_only_for_a_while() -> None:
    roster = met(ORDER, [PEERS[:3], *[PEERS[:2]] * (KEPT_ROUNDS - 1)])
    assert PEERS[2] in roster.peers
    roster = roster.after(ORDER, KEPT_ROUNDS, PEERS[:2])
    assert roster.peers == PEERS[:2]


def test_rounds_that_were_skipped_hand_out_new_windows_too() -> None:
    roster = met(ORDER, [PEERS[:2]])
    shares = [share_of(ORDER, roster, PEERS[0], number) for number in (1, 2, 3)]
    seen = [all_of(share) for share in shares if share is not None]
    assert len(set.union(*seen)) == 3 * ORDER.share


def test_an_epoch_hands_out_every_window_but_less_than_a_stretch() -> None:
    roster = met(ORDER, [PEERS[:3]])
    handed: dict[int, set[int]] = {}
    for number in range(1, 20):
        for peer in PEERS[:3]:
            share = share_of(ORDER, roster, peer, number)
            assert share is not None
            handed.setdefault(share.epoch, set()).update(all_of(share))
        roster = roster.after(ORDER, number, PEERS[:3])
    assert ORDER.windows - len(handed[0]) < 3 * ORDER.share
    assert handed[0] == set(shuffled(range(96), 100, ORDER.seed * 1_000_003))


def test_a_share_of_small_data_goes_round_and_never_into_the_neighbours() -> None:
    small = DataOrder("0" * 64, windows=7, share=50, seed=1)
    roster = met(small, [PEERS[:3]])
    shares = [share_of(small, roster, peer, 1) for peer in PEERS[:3]]
    windows = [set(share.windows(0, 50)) for share in shares if share is not None]
    assert [len(found) for found in windows] == [2, 2, 2]
    assert len(set.union(*windows)) == 6


def test_data_smaller_than_the_group_goes_to_the_first_and_the_others_have_none() -> None:
    tiny = DataOrder("0" * 64, windows=2, share=50, seed=1)
    roster = met(tiny, [PEERS])
    shares = [share_of(tiny, roster, peer, 1) for peer in PEERS]
    assert [share is None for share in shares] == [False, False, True, True, True]
    assert set.union(*(all_of(share) for share in shares if share is not None)) == {0, 1}


def test_fragments_of_one_round_belong_together_and_the_past_stays() -> None:
    roster = met(ORDER, [PEERS[:2]]).after(ORDER, 1, PEERS[:1]).after(ORDER, 1, PEERS[1:3])
    assert roster.peers == PEERS[:3]
    assert roster.taken == 8
    with pytest.raises(ValueError, match="round 0 after"):
        roster.after(ORDER, 0, PEERS)
