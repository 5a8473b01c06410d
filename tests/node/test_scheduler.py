"""Which works run together: decode steps first, prompts in pieces, nobody starves."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.scheduler import Batch, Waiting, next_batch
from shoal.swarm.sessions.lanes import Lane
from shoal.swarm.units import Span

ALL, PART = Span(0, 10), Span(3, 10)


def takes(batch: Batch | None) -> dict[int, int]:
    assert batch is not None
    return {take.key: take.count for take in batch.takes}


def test_nothing_waiting_gives_no_batch() -> None:
    assert next_batch([]) is None


def test_every_decode_step_runs_before_a_prompt_gets_the_room_that_is_left() -> None:
    waiting = [Waiting(1, ALL, 5000, 0), *(Waiting(key, ALL, 1, 0) for key in range(2, 12))]
    batch = next_batch(waiting, tokens=64)
    assert takes(batch) == {1: 54} | dict.fromkeys(range(2, 12), 1)


def test_a_prompt_goes_on_even_when_decode_steps_fill_the_batch() -> None:
    waiting = [Waiting(1, ALL, 500, 0), *(Waiting(key, ALL, 1, 0) for key in range(2, 102))]
    assert takes(next_batch(waiting, tokens=64))[1] == 8


def test_works_of_different_spans_never_share_a_batch_and_take_turns() -> None:
    waiting = [Waiting(1, ALL, 1000, 0), Waiting(2, PART, 1000, 0)]
    served = []
    for turn in range(4):
        batch = next_batch(waiting, tokens=10)
        assert batch is not None
        (take,) = batch.takes
        served.append(take.key)
        waiting = [
            replace(work, turn=turn + 1, left=work.left - 10) if work.key == take.key else work for work in waiting
        ]
    assert served == [1, 2, 1, 2]


def test_two_long_prompts_take_turns_with_whole_pieces() -> None:
    first = next_batch([Waiting(1, ALL, 100, 0), Waiting(2, ALL, 100, 0)], tokens=16)
    second = next_batch([Waiting(1, ALL, 84, 1), Waiting(2, ALL, 100, 0)], tokens=16)
    assert (takes(first), takes(second)) == ({1: 16}, {2: 16})


def test_a_short_prompt_leaves_its_room_to_the_next_one() -> None:
    assert takes(next_batch([Waiting(1, ALL, 6, 0), Waiting(2, ALL, 100, 0)], tokens=16)) == {1: 6, 2: 10}


def test_the_account_that_is_furthest_behind_comes_first_and_among_equals_who_waited_longest() -> None:
    ahead, behind = Waiting(1, ALL, 100, 0, rank=200.0), Waiting(2, ALL, 100, 5)
    assert takes(next_batch([ahead, behind], tokens=16)) == {2: 16}
    assert takes(next_batch([ahead, replace(behind, rank=200.0)], tokens=16)) == {1: 16}


def test_the_free_lane_has_its_share_of_a_batch_while_members_fill_it() -> None:
    members = [Waiting(key, ALL, 500, 0, lane=Lane.PAID) for key in range(4)]
    got = takes(next_batch([*members, Waiting(9, ALL, 500, 0, lane=Lane.FREE)], tokens=60))
    assert got == {0: 50, 9: 10}


def test_the_free_lane_has_no_more_than_its_share_while_a_member_waits() -> None:
    flood = [Waiting(key, ALL, 1, 0, lane=Lane.FREE) for key in range(100)]
    got = takes(next_batch([*flood, Waiting(200, ALL, 1, 0, lane=Lane.PAID)], tokens=60))
    assert got[200] == 1
    assert len(got) == 11
    elsewhere = Waiting(200, PART, 1, 0, rank=50.0, lane=Lane.PAID)
    assert len(takes(next_batch([*flood, elsewhere], tokens=60))) == 10


def test_the_free_lane_has_everything_when_nobody_else_waits() -> None:
    assert takes(next_batch([Waiting(1, ALL, 500, 0, lane=Lane.FREE)], tokens=60)) == {1: 60}


works = st.builds(
    Waiting,
    key=st.integers(0, 10**6),
    span=st.sampled_from([ALL, PART]),
    left=st.integers(1, 3000),
    turn=st.integers(0, 50),
    rank=st.floats(0.0, 8192.0),
    lane=st.sampled_from(Lane),
)


@given(st.lists(works, min_size=1, max_size=40, unique_by=lambda work: work.key), st.integers(8, 512))
def test_a_batch_has_one_span_and_takes_no_more_than_is_left(waiting: list[Waiting], tokens: int) -> None:
    batch = next_batch(waiting, tokens)
    assert batch is not None
    by_key = {work.key: work for work in waiting}
    assert batch.takes
    assert len({take.key for take in batch.takes}) == len(batch.takes)
    for take in batch.takes:
        assert by_key[take.key].span == batch.span
        assert 1 <= take.count <= by_key[take.key].left
    steps = [take for take in batch.takes if by_key[take.key].left == 1]
    assert sum(take.count for take in batch.takes) - len(steps) <= max(tokens - len(steps), tokens // 8, 1)
    free = sum(take.count for take in batch.takes if by_key[take.key].lane is Lane.FREE)
    assert all(work.lane is Lane.FREE for work in waiting) or free <= max(1, tokens // 6)


@given(st.lists(works, min_size=1, max_size=12, unique_by=lambda work: work.key))
def test_everything_that_waits_is_finished_in_the_end(waiting: list[Waiting]) -> None:
    left = {work.key: replace(work, left=min(work.left, 200), turn=0) for work in waiting}
    for turn in range(3000):
        batch = next_batch(list(left.values()), tokens=32)
        if batch is None:
            break
        for take in batch.takes:
            work = left.pop(take.key)
            if work.left > take.count:
                left[take.key] = replace(work, left=work.left - take.count, turn=turn + 1)
    assert not left
